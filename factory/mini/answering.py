"""The exact answers of the mini world's tasks, from the slots alone."""

import json

from factory.mini import lexicon as lex
from factory.mini.drawing import Slots


def places(s: Slots) -> str:
    return s["words"].split()[{"first": 0, "second": 1, "third": 2, "last": -1}[s["place"]]]


def lives(s: Slots) -> str:
    return next(f.split()[-1] for f in s["facts"].rstrip(".").split(". ") if f.split()[0] == s["name"])


def color(s: Slots) -> str:
    return next(f.split()[-1] for f in s["facts"].rstrip(".").split(". ") if f.split()[1] == s["thing"])


def translate(s: Slots) -> str:
    lexicon = dict(p.split(" = ") for p in s["pairs"].split(", "))
    return " ".join(lexicon[w] for w in s["words"].split())


def sentiment(s: Slots) -> str:
    word = s["sentence"].rstrip(".").split()[-1]
    return dict.fromkeys(lex.GOOD, "positive").get(word) or dict.fromkeys(lex.BAD, "negative")[word]


def polite(s: Slots) -> str:
    order = s["sentence"].rstrip(".")
    return f"Could you please {order[0].lower()}{order[1:]}?"


def brief(s: Slots) -> str:
    return "The" + s["sentence"].rpartition(" the")[2]


def unique(s: Slots) -> str:
    return " ".join(dict.fromkeys(s["words"].split()))


def join(s: Slots) -> str:
    return {"dashes": "-", "commas": ", ", "slashes": "/", "plus signs": " + "}[s["separator"]].join(s["words"].split())


def add(s: Slots) -> str:
    a, b = int(s["number1"]), int(s["number2"])
    ones, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens = f"{a // 10} + {b // 10}" + (" + 1" if carry else "")
    return f"{a % 10} + {b % 10} = {ones}\n{tens} = {a // 10 + b // 10 + carry}\nAnswer: {a + b}"


def story(s: Slots) -> str:
    a, b, c = (int(s[f"number{i}"]) for i in (1, 2, 3))
    return f"{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}\nAnswer: {a + b - c}"


def as_json(s: Slots) -> str:
    return json.dumps({"name": s["name"], "city": s["city"], "color": s["color"]})


def filter_kind(s: Slots) -> str:
    return " ".join(w for w in s["words"].split() if lex.PLURAL[lex.KIND[w]] == s["kinds"])


def zh_split(facts: str) -> list[str]:
    return facts.rstrip("。").split("，")
