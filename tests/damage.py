"""Every damage that a file or a folder may take, each with a name: nothing is drawn by luck.

``for name, content in of_file(whole)``: what the file may have become. ``for name in
of_folder(folder)``: ``folder`` has become it, and is whole again at the end.
"""

import io
import shutil
import warnings
import zipfile

# bytes at either end of a file in which every byte is changed in turn: headers and directories
# stand there
EDGE = 1024
PLACES = 300  # changed between them
CUTS = 60


def of_file(whole, edge=EDGE):
    """Bytes changed, cut off, lost, repeated and added.

    Of an archive also whole members (``of_members``).
    """
    for place in places(len(whole), edge):
        # 1: another count; ^ 0x20: a letter's other case
        values = (whole[place] ^ 1, 1, whole[place] ^ 0x20)
        is_edge = min(place, len(whole) - 1 - place) < edge
        for value in dict.fromkeys(values if is_edge else values[:1]):
            if value != whole[place]:
                altered = bytearray(whole)
                altered[place] = value
                yield f"byte {place} is {value}", bytes(altered)
    for length in {len(whole) * cut // CUTS: None for cut in range(CUTS)}:
        yield f"cut to {length} bytes", whole[:length]
    yield "cut by one byte", whole[:-1]
    size = max(1, min(512, len(whole) // 8))
    for start in range(0, len(whole), size):
        before, block, after = whole[:start], whole[start : start + size], whole[start + size :]
        yield f"{size} zeros from {start}", before + bytes(len(block)) + after
        yield f"{size} bytes from {start} are missing", before + after
        yield f"{size} bytes from {start} are there twice", before + block + block + after
    yield "a byte is appended", whole + b"\0"
    yield "it is there twice", whole + whole
    yield "something stands before it", b"#!" + whole
    yield "zeros", bytes(len(whole))
    if zipfile.is_zipfile(io.BytesIO(whole)):
        yield from of_members(whole)


def places(length, edge):
    """Every byte of both ends, and bytes at a fixed stride between them."""
    stride = max(1, (length - 2 * edge) // PLACES)
    middle = range(edge, max(edge, length - edge), stride)
    return sorted({*range(min(edge, length)), *middle, *range(max(0, length - edge), length)})


def of_members(whole):
    """Whole archives: members removed, renamed, doubled, swapped, altered and added."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for index, (name, content) in enumerate(members):
        others = members[:index] + members[index + 1 :]
        altered = content[:-1] + bytes([content[-1] ^ 1]) if content else b"\1"
        variants = {
            "is removed": others,
            "is renamed": [*others, (f"{name}.old", content)],
            "is altered": [*members[:index], (name, altered), *members[index + 1 :]],
            "is there twice": [*members, (name, content)],
            "is there twice, the second altered": [*members, (name, altered)],
            "is there twice, the first altered": [(name, altered), *members],
        }
        for what, damaged in variants.items():
            yield f"{name} {what}", zipped(damaged)
        for other, other_content in others[:3]:
            rest = [member for member in others if member[0] != other]
            swapped = [(name, other_content), (other, content), *rest]
            yield f"{name} and {other} are swapped", zipped(swapped)
            yield f"{other} is in the place of {name}", zipped([(name, other_content), *others])
    yield "another member is added", zipped([*members, ("other.npy", members[-1][1])])
    yield "no members", zipped([])


def zipped(members):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of two members of one name, which are wanted here
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def of_folder(folder):
    """Files removed, emptied, cut, altered, renamed, swapped, put over another, and added."""
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def become(files):
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    for name, content in whole.items():
        others = {other: whole[other] for other in whole if other != name}
        middle = len(content) // 2
        altered = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for what, files in {
            "is removed": others,
            "is emptied": {**whole, name: b""},
            "is cut": {**whole, name: content[:middle]},
            "is altered": {**whole, name: altered},
            "is renamed": {**others, f"{name}.old": content},
        }.items():
            become(files)
            yield f"{name} {what}"
        for other in others:
            become({**whole, name: whole[other]})
            yield f"{other} is in the place of {name}"
            if other > name:
                become({**whole, name: whole[other], other: content})
                yield f"{name} and {other} are swapped"
    become({**whole, "other.json": b"{}"})
    yield "another file is added"
    become(whole)
