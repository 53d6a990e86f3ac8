"""What lies at a path, is it the set it should be, and if not, which one line mends it.

Reads only; writes nothing anywhere.

Flow: ``check("imagenet1k", Path("/data/imagenet"))`` or ``check("folder:/data/pets")`` -> for each
split: find, read, count, decode a spread part of the images and every mask, hash -> a ``Report``:
what lies there, and each problem with its fix. On the command line: ``silc-bench data check``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from silc_bench.datasets.dataset import ignore_of, spread
from silc_bench.datasets.image_set import ImageFile, ImageSplit, look_through, tracked
from silc_bench.datasets.own_data import KINDS, OwnData, OwnMasks, parse
from silc_bench.datasets.public.find import Expected, NotFoundError, Site
from silc_bench.datasets.public.load import SETS, find_site, read
from silc_bench.errors import DataError, UserError, unknown_name
from silc_bench.later import np
from silc_bench.system.terminal import counted

DECODED = 500  # images a split that are decoded, unless all are asked for
SHOWN = 3  # sizes that are shown


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what mends it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Report:
    """What was found, and what is wrong with it."""

    found: list[str]  # lines for people
    problems: list[Problem]


def check(name: str, path: Path | None = None, every_image: bool = False) -> Report:
    """Look at a named set, or at the user's own data.

    Args:
        path: of a named set: its folder, or the data root it lies under.
        every_image: decode them all, not only DECODED of each split.

    Raises:
        UserError: an unknown name, or a name without a path. What is wrong with the data is in
            the report, not raised.
    """
    own_set = parse(name)
    if own_set is not None:
        if path is not None:
            problem = f"{name} says already where the data lies"
            raise UserError(problem, about=path, fix="leave this path out")
        report = _report(_own_readers(own_set), own_set.word, every_image)
        if isinstance(own_set, OwnMasks) and not report.problems:
            try:
                own_set.check()
            except UserError as error:
                report.problems.append(_problem(error))
        return report

    if name not in SETS:
        kinds = [f"{kind}:" for kind in KINDS]
        raise unknown_name("dataset", name, [*SETS, *kinds], about="data check")
    if path is None:
        fix = f"write silc-bench data check {name} PATH"
        raise UserError("nothing says where the set lies", about=name, fix=fix)
    if not path.exists():
        raise UserError("no such file or folder", about=path, fix="check the path")
    return _report(_named_readers(name, path), name, every_image)


Reader = Callable[[], ImageSplit]


def _own_readers(own_set: OwnData | OwnMasks) -> Iterator[tuple[str, Reader]]:
    for split in own_set.splits():
        yield split, partial(own_set.read, split)


def _named_readers(name: str, path: Path) -> Iterator[tuple[str, Reader]]:
    """The splits that are there; the test split also where it is not, to say so."""
    for split in sorted(SETS[name].splits):
        if split != "test":
            try:
                _find(name, split, path)
            except NotFoundError:
                continue  # only tasks that learn from it need it
            except DataError:
                pass  # it is there and wrong, which reading it will say

        yield split, partial(_read_named, name, split, path)


def _read_named(name: str, split: str, path: Path) -> ImageSplit:
    return read(name, split, _find(name, split, path))


def _find(name: str, split: str, path: Path) -> Site:
    """As the commands find it under a data root; else the path is the set's folder itself."""
    try:
        return find_site(name, split, path)
    except NotFoundError:
        return find_site(name, split, path, is_the_set=True)


def _report(readers: Iterator[tuple[str, Reader]], title: str, every_image: bool) -> Report:
    report = Report([], [])
    try:
        for split, read in readers:
            _look_at(split, read, title, every_image, report)
    except UserError as error:  # no split at all
        report.problems.append(_problem(error))
    return report


def _look_at(split: str, read: Reader, title: str, every_image: bool, report: Report) -> None:
    """One split: what is found and what is wrong go into ``report``."""
    try:
        data = read()
    except UserError as error:
        report.problems.append(_problem(error))
        return

    # what was counted is worth knowing, whatever comes out later
    count = len(data.images)
    report.found.append(f"{title} {split}: {data.layout} in {data.folder}")
    report.found.extend(_contents(data, SETS[title].splits[split] if title in SETS else None))
    report.found.extend(f"  {note}" for note in data.notes)

    # spread, so that each class and each shard is tried
    chosen = [data.images[i] for i in spread(count, None if every_image else DECODED)]
    sizes, damaged = _decode(chosen, f"decoding {title} {split}")
    most_common = sizes.most_common(SHOWN)
    shown = ", ".join(f"{width} x {height} ({n})" for (width, height), n in most_common)
    report.found.append(
        f"  {len(chosen):,} of {count:,} images decoded; commonest sizes: {shown or 'none'}"
    )
    if damaged:
        what = f"{len(damaged)} of {len(chosen)} images cannot be decoded"
        report.problems.append(_problem(damaged[0], f"{what}; the first: "))

    # what cannot be read cannot be hashed
    mask_title = f"reading masks of {title} {split}"
    if data.rule.names and not _masks_are_right(data, mask_title, report):
        return
    found = look_through(data.names, data.images, f"{title} {split}")
    mask_names: tuple[str, ...] = ()  # which of them are absent was said above
    report.found.extend(f"  {note}" for note in found.notes(data.images, mask_names))
    report.found.append(f"  fingerprint {found.fingerprint}")


def _contents(data: ImageSplit, expected: Expected | None) -> Iterator[str]:
    """Lines on the images, classes and captions; ``expected`` is None for own data."""
    images = data.images
    line = f"  {counted(len(images), 'image')}"
    if data.class_names:
        counts = Counter(image.label for image in images)
        least, most = min(counts.values()), max(counts.values())
        line += f", {len(data.class_names):,} classes of {least:,} to {most:,} images"

    captions = [len(image.captions) for image in images]
    if any(captions):
        line += (
            f", {counted(sum(captions), 'caption')} ({min(captions)} to {max(captions)} an image)"
        )

    # a wrong count was refused before: what is here is the whole set, or a part that we know
    if expected is not None:
        if len(images) in (expected.images, expected.also):
            line += ", as many as the set has"
        else:
            line += f": a known part of the set's {expected.images:,}"
    yield line

    if data.class_names and expected is None:
        # a list names the folders in their order, and only the eye sees whether it is right
        if data.class_folders:
            yield "  the list of names says, folder by folder:"
            for folder, class_name in zip(data.class_folders, data.class_names, strict=True):
                yield f"    {folder} is {class_name}"

        more = ", ..." if len(data.class_names) > 5 else ""
        yield f"  classes in label order: {', '.join(data.class_names[:5])}{more}"

        # folders named by numbers or codes
        letters = [any(letter.isalpha() for letter in name) for name in data.class_names]
        if not any(letters):
            yield (
                "  the names are no words, and zero-shot asks for them:"
                " give classnames.txt, a name a line in this order"
            )


def _masks_are_right(data: ImageSplit, title: str, report: Report) -> bool:
    """Read every mask and report which classes they show, or how many of them are wrong."""
    pixels = np.zeros(len(data.rule.names), np.int64)  # of each class
    not_scored = 0
    wrong: list[DataError] = []
    for image in tracked(data.images, title):
        try:
            labels = image.labels()
        except DataError as error:
            wrong.append(error)
            continue

        # one count for each value that the type can hold, the ignored one last
        counts = np.bincount(labels.ravel(), minlength=ignore_of(labels) + 1)
        pixels += counts[: len(pixels)]
        not_scored += int(counts[ignore_of(labels)])

    if wrong:
        what = f"{len(wrong):,} of {len(data.images):,} masks are wrong"
        report.problems.append(_problem(wrong[0], f"{what}; the first: "))
        return False

    policy = data.rule.policy()
    share = 100 * not_scored / (int(pixels.sum()) + not_scored)
    report.found.append(
        f"  {counted(len(data.images), 'mask')} of {len(pixels)} classes;"
        f" background: {policy['background']};"
        f" not scored: {policy['not_scored']}, {share:.1f} % of the pixels"
    )

    absent = [name for name, count in zip(data.rule.names, pixels, strict=True) if not count]
    if absent:
        more = ", ..." if len(absent) > SHOWN else ""
        shown = ", ".join(absent[:SHOWN])
        report.found.append(f"  {len(absent)} of the classes are in no mask: {shown}{more}")
    return True


def _decode(
    images: list[ImageFile], title: str
) -> tuple[Counter[tuple[int, int]], list[DataError]]:
    """How many images have each size (width, height), and what is wrong with the others."""
    sizes: Counter[tuple[int, int]] = Counter()
    damaged = []
    for image in tracked(images, title):
        try:
            sizes[image.decode().size] += 1
        except DataError as error:
            damaged.append(error)
    return sizes, damaged


def _problem(error: UserError, before: str = "") -> Problem:
    place = f"{error.about}: " if error.about else ""
    return Problem(before + place + error.problem, error.fix)
