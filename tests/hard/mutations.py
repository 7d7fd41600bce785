"""Makes hostile inputs from good ones: bytes, numbers, lines and values changed at random, by a seed."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
NUMBERS = (b"0", b"-1", b"1e308", b"1e999", b"99999999999999999999", b"2.5", b"NaN", b"-Infinity", b"true", b'"3"')
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2.5, 1e308, 10**30, "", "x", "\x1b[31m", "\ud800", "../../etc/passwd", [], {}, [[]]),
    *([None], {"": None}, "long" * 5000, [0] * 5000),
)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut, doubled, swapped or filled."""
    if not content:
        return b"\x00"
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    match rng.randrange(8):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + content[stop:]
        case 2:
            return content[:start] + content[start : start + 64] * rng.choice((2, 50)) + content[start:]
        case 3:
            return content[:start] + bytes(min(stop - start, 4096)) + content[start + min(stop - start, 4096) :]
        case 4:
            return content[:start] + rng.randbytes(rng.choice((1, 8, 64))) + content[start:]
        case 5:
            places = [*NUMBER.finditer(content[: 10**5])]
            if places:
                found = rng.choice(places)
                return content[: found.start()] + rng.choice(NUMBERS) + content[found.end() :]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines left out, moved or doubled, or bytes within them changed."""
    lines = content.splitlines(keepends=True)
    if len(lines) < 2 or rng.random() < 0.6:
        return mutate_bytes(content, rng)
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.randrange(3)):
        lines.insert(rng.randrange(len(lines) + 1), line)
    return b"".join(lines)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """JSON values, one of which is replaced, removed, added or nested deeply."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice([*value])
        match rng.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, "more": rng.choice(VALUES)}
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return [*value[:place], *value[place + 1 :]]
            case 1:
                return [*value, value[place]]
        return [*value[:place], mutate_value(value[place], rng), *value[place + 1 :]]
    if rng.random() < 0.05:
        return nested(rng.choice((50, 3000)))
    return rng.choice(VALUES)


def nested(depth: int) -> Any:
    """A list in a list, and so on."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def json_texts(value: Any, count: int, seed: int) -> Iterator[bytes]:
    """`count` JSON files: half with changed values, half with changed bytes; some are deeper than Python can write."""
    rng = random.Random(seed)
    text = json.dumps(value, indent=2).encode()
    for number in range(count):
        if number % 20 == 19:
            yield b"[" * 10_000 if number % 40 == 19 else b'{"a":' * 10_000
        elif number % 2:
            yield mutate_bytes(text, rng)
        else:
            try:
                yield json.dumps(mutate_value(value, rng)).encode()
            except RecursionError:
                yield b"[" * 5000 + b"]" * 5000
