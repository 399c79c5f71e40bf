"""Text to read: books, files, Hub data sets, and stories that never end.

Knows nothing about models or tokens: everything here is ``str``.
"""

from __future__ import annotations

import lzma
import os
import random
from collections.abc import Iterator
from pathlib import Path

NAMES = (
    "Ada Ben Clara David Edith Felix Grace Henry Iris Jonas Klara Leo Mina Noah Olive Peter Quinn "
    "Rosa Simon Tessa Ursula Victor Wanda Xenia Yusuf Zora"
).split()
PLACES = (
    "the old mill|the harbour|the library|the orchard|the railway station|the bakery|the hill|"
    "the lighthouse|the market square|the school garden|the river bank|the museum|the forest hut|"
    "the bridge|the churchyard|the ferry"
).split("|")
THINGS = (
    "brass key|blue umbrella|wooden box|silver whistle|torn map|red lantern|paper kite|"
    "glass marble|music box|woollen scarf|leather diary|tin drum|walking stick|"
    "pocket watch|clay pot|fishing net"
).split("|")
ANIMALS = "dog|cat|goat|pony|raven|hen|donkey|goose".split("|")
WEATHER = (
    "It was raining|The sun was shining|A cold wind was blowing|Snow was falling|"
    "The fog lay low|The air was still|It was a warm evening|The night was clear"
).split("|")
OPENINGS = "Once upon a time|Many years ago|One morning|Not long ago|In the spring|Last winter"
MOODS = "glad tired curious proud worried hungry quiet cheerful cross surprised".split()

# Each sentence refers to what the story already knows: two people, a place, a thing, its hiding
# place, an animal. {x} fields are filled from that state, so that names come back again and again.
SENTENCES = (
    "{a} went to {place} with {b}.",
    "{weather}, and {a} stayed at {place}.",
    '"Where is the {thing}?" asked {a}.',
    '"The {thing} is at {home}," said {b}.',
    "{a} remembered that the {thing} was still at {home}.",
    "The {animal} followed {a} all the way to {place}.",
    "{b} was {mood}, but {a} was {mood2}.",
    '"I have seen that {animal} at {place}," {b} told {a}.',
    "{a} looked for the {thing} and found nothing but a {animal}.",
    "They sat down near {place} and talked about the {thing}.",
    '"Do not forget the {thing}," said {b} to {a}.',
    "{a} gave the {animal} some bread, and {b} laughed.",
    "After a while {b} walked back to {home}.",
    "Nobody at {place} had heard of {a} or of {b}.",
    "{b} wrote a letter to {a} about the {animal} and the {thing}.",
    '"You are {mood} today, {a}," said {b}. "Is it the {thing}?"',
    "{weather}. {b} waited for {a} at {place}, as they had agreed.",
    "So {a} and {b} carried the {thing} from {home} to {place}.",
)
MOVES = (
    "Then {b} hid the {thing} at {home}.",
    "In the end they left the {thing} at {home}.",
    "The next day the {thing} lay at {home}, and {a} did not know why.",
)


def stories(seed: int = 0) -> Iterator[str]:
    """Yield short stories without end, in which people, places and things come back.

    Args:
        seed: which sequence of stories; the same seed gives the same stories.

    Yields:
        One story of 8 to 24 sentences, a single paragraph that ends with a newline.

    Example:
        >>> next(stories(seed=1)) == next(stories(seed=1))
        True
    """
    draw = random.Random(seed)
    while True:
        a, b = draw.sample(NAMES, 2)
        thing, animal = draw.choice(THINGS), draw.choice(ANIMALS)
        home, place = draw.sample(PLACES, 2)
        opening = draw.choice(OPENINGS.split("|"))
        sentences = [
            f"{opening} {a} and {b} lived near {place}.",
            f"{a} had a {animal}, and {b} kept a {thing} at {home}.",
        ]
        for _ in range(draw.randint(6, 22)):
            if draw.random() < 0.12:
                home = draw.choice([p for p in PLACES if p != home])
                template = draw.choice(MOVES)
            else:
                template = draw.choice(SENTENCES)
            if draw.random() < 0.2:
                place = draw.choice(PLACES)
            one, two = (a, b) if draw.random() < 0.5 else (b, a)
            mood, mood2 = draw.sample(MOODS, 2)
            sentences.append(
                template.format(
                    a=one, b=two, thing=thing, animal=animal, home=home, place=place,
                    mood=mood, mood2=mood2, weather=draw.choice(WEATHER),
                )
            )  # fmt: skip
        yield " ".join(sentences) + "\n"


def story_text(n_characters: int, seed: int = 0) -> str:
    """Return stories as one text of at least ``n_characters`` characters, whole stories only.

    Example:
        >>> len(story_text(1000)) >= 1000
        True
    """
    parts: list[str] = []
    size = 0
    source = stories(seed)
    while size < n_characters:
        parts.append(next(source))
        size += len(parts[-1])
    return "".join(parts)


def books_folder() -> Path | None:
    """Return the folder with ``train.txt.xz`` and ``valid.txt.xz``, or None where there is none.

    ``$SINKVIZ_BOOKS`` names it; otherwise ``data/books`` or ``shared/data/books`` beside the
    current folder or one of its parents.
    """
    named = os.environ.get("SINKVIZ_BOOKS")
    if named:
        return Path(named) if (Path(named) / "valid.txt.xz").is_file() else None
    here = Path.cwd()
    for parent in (here, *here.parents):
        for name in ("data/books", "shared/data/books"):
            if (parent / name / "valid.txt.xz").is_file():
                return parent / name
    return None


def books(split: str = "valid") -> list[str]:
    """Return the public-domain books of a split, one string each.

    Args:
        split: ``train`` or ``valid``.

    Raises:
        FileNotFoundError: there are no books here; ``stories`` work everywhere.
    """
    folder = books_folder()
    if folder is None:
        raise FileNotFoundError(
            "no books found: set SINKVIZ_BOOKS to a folder with train.txt.xz and valid.txt.xz "
            "(books separated by form feeds), or use text 'stories', which needs no file"
        )
    with lzma.open(folder / f"{split}.txt.xz", "rt", encoding="utf-8") as file:
        return file.read().split("\f")


def read_text(source: str | Path, *, n_characters: int | None = None, seed: int = 0) -> str:
    """Return the text that ``source`` names.

    Args:
        source: ``stories``; ``books:valid`` or ``books:train``; ``hub:DATASET`` (column ``text``
            of the test split, needs the ``datasets`` package and a network); or a file's path.
        n_characters: keep at most so many characters; ``stories`` needs it (default 100,000).
        seed: of the stories.

    Raises:
        FileNotFoundError: no such file, or no books here.
        ValueError: the file is not UTF-8 text, or holds nothing but white space.
        ImportError: a Hub data set was asked for without the ``datasets`` package.

    Example:
        >>> len(read_text("stories", n_characters=50))
        50
    """
    name = str(source)
    if name == "stories":
        text = story_text(n_characters or 100_000, seed)
    elif name.startswith("books:"):
        text = "\n".join(books(name.removeprefix("books:")))
    elif name.startswith("hub:"):
        text = _hub_text(name.removeprefix("hub:"))
    else:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"no text file {name!r}; give a path, 'stories', 'books:valid' or 'hub:DATASET'"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 text (byte {error.start}); convert it") from None
    if not text.strip():
        raise ValueError(f"{name} holds no text; give a file with at least two words")
    return text[:n_characters]


def _hub_text(name: str) -> str:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            f"reading the Hub data set {name!r} needs: pip install datasets"
        ) from None
    return "\n".join(load_dataset(name, split="test")["text"])
