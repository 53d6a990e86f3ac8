"""Names that anybody could give a model or a folder, and what they may not do to a table."""

import unicodedata

HOSTILE_NAMES = (
    "a" * 300,
    "模型" * 60,
    "👩‍🚀🏳️‍🌈" * 20,
    "מודל-שלום",
    "e\u0301\u0302\u0303" * 80,
    "=cmd|' /C calc'!A0",
    "a\u202egpj.exe",
    "[bold red]x[/]:smile:",
    "x" * 150 + "-laion2b_s34b_b79k/" + "x" * 150,
    "<script>alert(1)</script>|**x**[l](javascript:1)`\"'&{{7*7}}",
    "\\input{/etc/passwd}$x^2_i$%~#{}--''``<<>>",
)


def cells(text):
    """The width in a terminal as the Unicode standard has it, without the library that we ask."""
    width = 0
    for letter in text:
        if unicodedata.category(letter) not in ("Mn", "Me", "Cf"):
            width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
    return width
