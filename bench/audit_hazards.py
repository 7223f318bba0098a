"""What no kernel may have in Triton's own terms, found in the text of these, for which Triton itself is not needed.

`hazards` reads every product, and follows the numbers of rows and of programs through the operations (`_steps`), loops
included, to the addresses that are made of them (`_wraps`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NARROW = r"tensor<\w+xbf16> \* tensor<\w+xbf16> -> tensor<\w+xf32>"
_PLACE = re.compile(r"^#loc.*\n| loc\((?:[^()]|\([^()]*\))*\)", re.MULTILINE)
_STEP = re.compile(r'\s*(?:(%[\w-]+).*? = )?"?([\w.]+)"?(.*)')


def hazards(ttir: str, precision: str = "") -> list[str]:
    """What no kernel may have in Triton's own terms: a product in another precision than it says, rows of 32 bits."""
    stated = {
        "": r"inputPrecision|xbf16> \* tensor<\w+xbf16>",
        "bf16": _NARROW,
        "bf16x6": rf"{_NARROW}|inputPrecision = bf16x6",
    }.get(precision, rf"inputPrecision = {precision}\b")
    found = {
        "a product without its precision": not all(re.search(stated, dot) for dot in re.findall(r"tt\.dot .*", ttir)),
        "a row's number in 32 bits": _wraps(ttir),
    }
    return [what for what, there in found.items() if there]


def placeless(ttir: str) -> str:
    """A kernel without where in the source its operations stand."""
    return _PLACE.sub("", ttir)


def _wraps(ttir: str) -> bool:
    """Whether an address is made of a 32-bit product that may pass 2^31, as rows times features do.

    One factor comes of how many samples there are or of the number of a program, which on all axes but the first counts
    the tiles of a layer, 2^8 at most; the other, unless it is a constant, may have 31 bits.
    """
    constants = re.findall(r"(%[\w-]+) = arith\.constant (?:dense<)?(-?\d+)\b", ttir)
    known = {name: int(value).bit_length() for name, value in constants}
    bits, wrapped, before = dict.fromkeys(("%n_rows", "%n_chains"), 31), set[str](), -1
    steps = list(_steps(placeless(ttir)))
    while before < (before := sum(bits.values()) + len(wrapped)):  # what loops carry comes round
        for made, operation, of, rest in steps:
            if operation == "tt.addptr" and of[1] in wrapped:
                return True
            if operation in ("tt.addptr", "tt.load", "arith.cmpi"):
                continue
            given = of[1:] if operation in ("arith.remsi", "arith.select") else of
            found = max((bits[one] for one in given if one in bits), default=0)
            if operation == "tt.get_program_id":
                found = 31 if rest.startswith(" x") else 8
            elif operation == "arith.muli" and found:
                found = sum(bits.get(one, known.get(one, 31)) for one in of)
            if found:
                bits[made] = max(bits.get(made, 0), min(found, 31))
            if wrapped.intersection(given) or (found > 31 and rest.rstrip(">").endswith("i32")):
                wrapped.add(made)
    return False


def _steps(ttir: str) -> Iterator[tuple[str, str, list[str], str]]:
    """Every operation's result, name, operands and the rest of its line; of loops, what they count, take and give."""
    regions: list[tuple[str, list[str]]] = []
    for line in ttir.splitlines():
        if line.lstrip().startswith("}") and not line.endswith("{"):
            regions.pop()
        if not (step := _STEP.fullmatch(line)):
            continue
        made, operation, rest = step.groups(default="")
        of, carried = re.findall(r"%[\w-]+", rest), list[str]()
        if operation == "scf.for":
            counter, _, end, _, *both = of
            carried = both[::2]
            yield from ((name, operation, [one], "") for name, one in zip(carried, both[1::2], strict=True))
            yield counter, operation, [end], ""
        elif operation == "scf.yield":
            result, carried = regions[-1]
            yield from ((name, operation, [one], "") for name, one in zip(carried, of, strict=False))
            yield result, operation, of, ""
        elif made:
            yield made, operation, of, rest
        if line.endswith("{"):
            regions.append((made, carried))
