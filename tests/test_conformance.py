"""Every conformance case of wire, index, stream, pods, tokenizer client and tiers is a test by its id."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
CASES = {
    "wire": "A2 A4 A6 A8 A10 A12 A14 A16 A18",
    "index": "B2 B4 B6 B8 B10 B12 B14 B16 B18 B20 B22 B24",
    "stream": "C2 C4 C6 C8 C10 C12",
    "kubernetes": "D2 D4 D6 D8 D12",
    "tokenizer client": "F2 F4 F6 F8",
    "index, second set": "K1 K3 K5 K7 K9 K11 K13 K15 K17 K18 K19 K21 K23 K27",
    "tiers": "T06 T08 T16 T18 T22 T24 T26 T28 T30 T32",
}


def test_every_case_has_its_test() -> None:
    text = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    names = re.findall(r"def (test_\w+)|f?\"(Test_K11_)", text)  # K11's are made, one per machine and implementation
    ids = {
        number.upper()
        for name in names
        for number in re.findall(r"(?<=_)[abcdfkt]\d+(?=_|$)", "".join(name), re.IGNORECASE)
    }
    wanted = {case for cases in CASES.values() for case in cases.split()}
    assert wanted - ids == set()
