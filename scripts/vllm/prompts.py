"""Prompts for real engines: text, token ids, conversations and tools, all from one seeded generator.

No text is anybody's: sentences are drawn from a list of plain words. Equal seeds give equal prompts.
"""

from __future__ import annotations

import random
from typing import Any

VOCABULARY = """
above account answer around begin below block bridge bright build cache carry change city clear close cold copy
count cover cross current dark deep depth draw drive early east edge empty engine enter even every fall field
find first floor follow form forward found free fresh full garden gather give glass green ground group grow half
hand hard harbour heat heavy hidden high hold hour house index inside join keep kind known lake land large last
late leave level light line list little long look lower main many map mark match measure middle minute mirror
month more morning mountain move narrow near never night north note number offer open order other outside over
paper part path pattern place plain plan point port prefix press quick quiet rain range reach read rest return
river road room round route run same sand sea second seldom send serve shape share sharp shore short side signal
silent simple sky slow small snow soft south space spring square stand start stay steady step still stone store
stream street strong summer sun table take tall thick thin think time token total touch tower trace train tree
turn under until upper valley value very view visit voice wait walk wall warm watch water wave west whole wide
wind window winter wire wood word work world write yellow young
"""
WORDS = VOCABULARY.split()

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string", "description": f"The {argument} to use"}},
                "required": [argument],
            },
        },
    }
    for name, description, argument in (
        ("find_route", "Find the way to a place", "place"),
        ("read_table", "Read one table of the store", "table"),
        ("measure", "Measure a value & return it as <number>", "value"),
    )
]


class Prompts:
    """A seeded source of prompts."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self, words: int) -> str:
        """Sentences of so many words in all; a word is about 2.3 tokens of the generated tokenizer."""
        drawn = [self.random.choice(WORDS) for _ in range(words)]
        sentences = [" ".join(drawn[i : i + 12]).capitalize() + "." for i in range(0, words, 12)]
        return " ".join(sentences)

    def token_ids(self, count: int) -> list[int]:
        """So many token ids that are plain text in the generated vocabulary."""
        return [self.random.randrange(300, 4000) for _ in range(count)]

    def unicode_text(self, words: int) -> str:
        """Text with what encoders get wrong: accents, other scripts, emoji, quotes, tabs and runs of blanks."""
        spice = ["é", "naïve", "京都", "Привет", "🙂", '"quoted"', "back\\slash", "\t", "  ", "\n", "a\u0301", "±½"]
        return " ".join(self.random.choice((*spice, self.random.choice(WORDS))) for _ in range(words))

    def chat(self, system: str, words: int) -> list[dict[str, Any]]:
        """The beginning of a conversation."""
        return [{"role": "system", "content": system}, {"role": "user", "content": self.text(words)}]

    def tool_turn(self) -> list[dict[str, Any]]:
        """An assistant's tool call and the tool's answer."""
        number = self.random.randrange(1000)
        arguments = f'{{"place": "{self.text(2)}", "number": {number}}}'
        call = {"id": f"call-{number}", "type": "function", "function": {"name": "find_route", "arguments": arguments}}
        return [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call-{number}", "content": self.text(12)},
        ]
