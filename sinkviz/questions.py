"""Questions to keep a chat going: ours, in plain English, eight categories of eleven.

Knows nothing about models. The questions stand on their own, so that any of them may follow any
other, and a model that has forgotten the last one loses nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """Something to ask a model.

    Attributes:
        category: what kind of question it is, one of ``CATEGORIES``.
        text: the question itself, one or two sentences.
    """

    category: str
    text: str


# A question per line.
_TEXTS = {
    "writing": """
Write the opening of a story about a lighthouse keeper who is afraid of the dark.
Describe the smell of a bakery at five in the morning, without using the word bread.
Write a short note to a neighbour whose dog digs up my tulips. Be kind, but clear.
Write four lines of verse about a kettle that will not boil.
Tell the story of a lost glove, as the glove itself would tell it.
Write the first paragraph of a letter from a grandmother to a grandchild at sea.
Describe a thunderstorm to someone who has never heard thunder.
Write an advertisement for an umbrella with a hole in it.
Give me three titles for a novel about two rival beekeepers, and say which is best.
Write a toast for a friend who has just retired after forty years of mending shoes.
Turn this into one good sentence: the train was late, it rained, nobody complained.
    """,
    "roleplay": """
You are an old ferryman and I am your only passenger tonight. What do you tell me?
Play a museum guide who secretly dislikes the most famous painting. Show me around.
You are a cat who has been asked to keep a diary. Read me the page for Tuesday.
Be the captain of a small spaceship with a leaking roof, and report to your crew.
You are a shopkeeper who sells only clocks. I say that I am never in a hurry. Reply.
Speak as the river that flows through my town. What have you seen this year?
You are a detective who is sure that the gardener is innocent. Explain why to the mayor.
Be my great-grandmother, hearing about telephones without wires for the first time.
You are a tired weather forecaster. Announce the twentieth day of rain in a row.
Play a chess piece of your choice and complain about the other pieces.
You are the cook of a mountain hut, and the soup is finished. Welcome a hungry hiker.
    """,
    "reasoning": """
Anna is taller than Bert, and Clara is shorter than Bert. Who is in the middle?
All the lamps in the hall are green. This lamp is red. What follows about this lamp?
Ten socks lie in a dark drawer, five grey and five brown. How many must I take to have a pair?
Only one of these can be true: the cake is gone, the cake is here. What can I be sure of?
If every Monday is wash day and today nobody washes, which day is it not?
Nora's aunt is the sister of my father. How could Nora and I be related?
Red mugs cost more than blue ones, and white ones less than blue. May a white mug cost most?
It takes one hour to dry a shirt on the line. How long do five shirts take, side by side?
My clock is five minutes fast and the bus is ten minutes late. When do I leave to be in time?
Some of the guests are singers, and no singer is late. Can all the guests be late?
The key is neither in the drawer nor on the hook, and only the vase is left. Where is it, and why?
    """,
    "mathematics": """
A garden is seven metres long and four metres wide. How long is the fence around it?
What is fifteen per cent of two hundred and forty? Show how you found it.
A train covers ninety kilometres in an hour and a quarter. How fast does it go?
Find two numbers whose sum is twenty and whose product is ninety-six.
How many different three-letter words can be made from the letters of the word tea?
Why is the sum of two odd numbers always even?
A jar holds three red and five blue marbles. How likely is it to draw a red one?
Add up all the whole numbers from one to fifty, and explain the shortcut.
Half of a number is six more than a third of it. What is the number?
A square has the same area as a circle of radius three. How long is its side?
If a recipe for four needs six eggs, how many eggs do ten people need?
    """,
    "science": """
Why does the moon look larger when it is close to the horizon?
How does a thermos flask keep tea hot and lemonade cold?
Why do leaves turn yellow and red in autumn?
What happens to the salt when sea water turns into a cloud?
How do birds find their way across an ocean at night?
Why does a spoon look bent in a glass of water?
What makes bread rise, and why does it need to rest?
Why can we hear the sea in an empty shell?
How does a vaccine teach the body something?
Why is it warmer in a valley than on top of a mountain that is nearer to the sun?
What would happen to the tides if the earth had two moons?
    """,
    "society": """
Why did people build walls around their towns, and why did they tear them down?
How did the printing press change the life of an ordinary family?
What did travellers on the Silk Road carry besides silk?
Why do some countries drive on the left side of the road?
How did people keep food through the winter before there was ice to buy?
What is the difference between a law and a custom? Give an example of each.
Why were canals dug all over Europe before the railways came?
How does a small village decide who may use the common meadow?
What did the bicycle change for women around the year 1900?
Why do most calendars have twelve months and not ten?
How can a country without a coast have a fishing tradition?
    """,
    "advice": """
I slept badly and have an important meeting at nine. What should I do before it?
How do I tell a friend that I cannot come to her wedding?
My bicycle squeaks, but only uphill. Where should I begin to look?
What should I pack for three days of walking in the rain?
How can I learn twenty words of a new language every day without hating it?
My flatmate never does the dishes. How do I bring it up without a quarrel?
Which three meals could a beginner cook with rice, eggs and one onion?
I want to read more in the evening and look at screens less. Where do I start?
How do I keep a tomato plant alive on a windy balcony?
My child is afraid of the swimming pool. What would you try first?
I have one free afternoon in a city that I do not know. How should I spend it?
    """,
    "computing": """
Write a Python function that returns the longest word of a sentence.
What is the difference between a list and a set, and when does it matter?
Explain what a cache is to someone who works in a library.
Take the dates out of this: the shop opened on 3 May 1987 and closed in June 2004.
Why does 0.1 plus 0.2 not give exactly 0.3 on most computers?
Sort these by year and write one per line: radio 1895, telephone 1876, cinema 1895.
How would you find one wrong line in a file of a million lines?
Write a command that counts how many files in a folder end in .txt.
What can go wrong when two programs write to the same file at once?
Give me the names, and nothing else: Mira met Tom and Ms Okafor at the station.
Explain recursion with an example that is not the factorial.
    """,
}

CATEGORIES = tuple(_TEXTS)


def questions(category: str | None = None, seed: int | None = None) -> tuple[Question, ...]:
    """Return our questions, in the order of the list or shuffled.

    Args:
        category: only these, one of ``CATEGORIES``; all where not given.
        seed: of the shuffling; the order of the list where not given.

    Returns:
        The questions, each once.

    Raises:
        ValueError: there is no such category.

    Example:
        >>> questions("science")[0].text
        'Why does the moon look larger when it is close to the horizon?'
        >>> len(questions()), questions(seed=1) == questions(seed=2)
        (88, False)
    """
    if category is not None and category not in _TEXTS:
        raise ValueError(f"no category {category!r}; known are {', '.join(CATEGORIES)}")
    chosen = [
        Question(name, text)
        for name, texts in _TEXTS.items()
        for text in texts.strip().splitlines()
        if category in (None, name)
    ]
    if seed is not None:
        random.Random(seed).shuffle(chosen)
    return tuple(chosen)
