"""Drawing the slots of the mini world's tasks."""

from collections.abc import Mapping
from random import Random

from factory.mini import lexicon as lex

Slots = Mapping[str, str]


def words(rng: Random, low: int = 3, high: int = 5) -> str:
    return " ".join(rng.sample(lex.WORDS, rng.randint(low, high)))


def numbers(rng: Random, low: int = 3, high: int = 5) -> str:
    return " ".join(str(n) for n in rng.sample(range(1, 100), rng.randint(low, high)))


def with_repeats(rng: Random) -> str:
    pool = rng.sample(lex.WORDS, 3)
    return " ".join(rng.choice(pool) for _ in range(rng.randint(4, 6)))


def count_slots(rng: Random) -> Slots:
    words = with_repeats(rng)
    return {"words": words, "word": rng.choice(words.split())}


def replace_slots(rng: Random) -> Slots:
    words = with_repeats(rng)
    return {"words": words, "word1": rng.choice(words.split()), "word2": rng.choice(lex.WORDS)}


def kinds_slots(rng: Random) -> Slots:
    kind = rng.choice(tuple(lex.PLURAL))
    some = [w for w in lex.KIND if lex.KIND[w] == kind]
    rest = [w for w in lex.KIND if lex.KIND[w] != kind]
    words = rng.sample(some, rng.randint(1, 3)) + rng.sample(rest, rng.randint(1, 3))
    rng.shuffle(words)
    return {"kinds": lex.PLURAL[kind], "words": " ".join(words)}


def fact_slots(rng: Random) -> Slots:
    names = rng.sample(lex.NAMES, 3)
    facts = [f"{n} lives in {c}." for n, c in zip(names, rng.sample(lex.CITIES, 3), strict=True)]
    return {"facts": " ".join(facts), "name": rng.choice(names)}


def color_slots(rng: Random) -> Slots:
    things = rng.sample(lex.THINGS, 3)
    facts = [f"The {t} is {c}." for t, c in zip(things, rng.sample(lex.COLORS, 3), strict=True)]
    return {"facts": " ".join(facts), "thing": rng.choice(things)}


def translate_slots(rng: Random) -> Slots:
    foreign, words = rng.sample(lex.FOREIGN, 4), rng.sample(lex.WORDS, 4)
    pairs = ", ".join(f"{f} = {w}" for f, w in zip(foreign, words, strict=True))
    return {"pairs": pairs, "words": " ".join(rng.sample(foreign, rng.randint(2, 3)))}


def story_slots(rng: Random) -> Slots:
    start, got = rng.randint(2, 9), rng.randint(2, 9)
    return {
        "name": rng.choice(lex.NAMES),
        "things": rng.choice(lex.COUNTABLES),
        "number1": str(start),
        "number2": str(got),
        "number3": str(rng.randint(1, min(9, start + got - 1))),
    }


def person_slots(rng: Random) -> Slots:
    return {"name": rng.choice(lex.NAMES), "city": rng.choice(lex.CITIES), "color": rng.choice(lex.COLORS)}


def review(rng: Random) -> Slots:
    return {"sentence": f"The {rng.choice(lex.REVIEWED)} was {rng.choice(lex.GOOD + lex.BAD)}."}


def order(rng: Random) -> Slots:
    return {"sentence": rng.choice(lex.ORDERS).capitalize() + "."}


def padded(rng: Random) -> Slots:
    opening = rng.choice(("Well, to be honest, I really think that", "As far as I know, and I may be wrong,"))
    return {"sentence": f"{opening} the {rng.choice(lex.WORDS)} is {rng.choice(lex.STATES)}."}


def two_numbers(rng: Random) -> Slots:
    a, b = rng.sample(range(10, 100), 2)
    return {"number1": str(a), "number2": str(b)}


def place_slots(rng: Random) -> Slots:
    return {"words": words(rng), "place": rng.choice(("first", "second", "third", "last"))}


def zh_facts(rng: Random) -> Slots:
    names = rng.sample(lex.ZH_NAMES, 2)
    facts = "，".join(f"{n}住在{c}" for n, c in zip(names, rng.sample(lex.ZH_CITIES, 2), strict=True))
    return {"zhfacts": facts + "。", "zhname": rng.choice(names)}
