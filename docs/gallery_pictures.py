"""The pictures of the gallery: name, what a reader who cannot see it is told, and the code.

Data, and nothing else; ``make_gallery.py`` runs it. A new figure needs one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass

SETUP = """\
from itertools import islice

import sinkviz as sv
from sinkviz.capturing import capture_scores
from sinkviz.text import stories

lm = sv.load("classroom-rope")
story = "".join(islice(stories(seed=1), 12))
ids = lm.encode(story)
short = sv.capture(lm, ids[:26], keep="maps", n_sink=1, n_recent=4)
trace = sv.capture(lm, ids[:128], keep="statistics", n_sink=4, n_recent=32)
scores = capture_scores(lm, list(islice(stories(seed=2), 64)), length=16)
policies = [sv.Dense(), sv.Window(64), sv.SinkWindow(4, 60), sv.Recompute(64)]
window, sinks = policies[1:3]
steps = sv.compare(lm, [window, sinks], text=ids[:300], capture=True)
lanes = dict(zip([window, sinks], zip(*steps, strict=True), strict=True))
runs = [sv.score(lm, ids[:2000], policy) for policy in policies]
"""


@dataclass(frozen=True)
class Picture:
    """One picture of the gallery.

    Attributes:
        name: of its files.
        alt: what is seen, in words.
        code: Python after ``SETUP`` that draws one figure.
    """

    name: str
    alt: str
    code: str


CHAPTERS: dict[str, tuple[Picture, ...]] = {
    "Attention of a text": (
        Picture(
            "attention",
            "A triangle of cells, queries down and keys across. The column of the first token is "
            "dark all the way down, everything else is pale. A bar marks the sink, a dashed line "
            "the edge of the last four keys, and the future is hatched.",
            "sv.plot_attention(short, layer=3, head=0)",
        ),
        Picture(
            "attention-rest",
            "The same map without the first token, which is one column of its own at the left. "
            "Now the full stop and single words stand out as columns and cells.",
            "sv.plot_attention(short, layer=3, head=0, hide=1)",
        ),
        Picture(
            "attention-layer",
            "Four maps side by side, the heads of one layer. Each has a dark first column.",
            "sv.grid_attention(short, layer=3)",
        ),
        Picture(
            "attention-model",
            "A mosaic of sixteen small maps, layers down and heads across; nearly every one has a "
            "dark first column.",
            "sv.grid_attention(short)",
        ),
        Picture(
            "received",
            "A line of received attention over 128 keys on a logarithmic axis. It begins at half "
            "of all attention for the first token, and falls a hundredfold at the second, below "
            "the dashed line of even attention.",
            "sv.plot_received(trace)",
        ),
        Picture(
            "received-map",
            "A row of cells for each of four layers, a column for each token. The column of the "
            "first token is dark in every layer.",
            "sv.plot_received_map(short)",
        ),
        Picture(
            "entropy-layers",
            "A mark per head and layer. Orange sink heads lie between one and two nats, the few "
            "grey heads without a sink above them, and the dashed line of even attention on top.",
            "sv.plot_entropy(trace)",
        ),
        Picture(
            "entropy-tokens",
            "Entropy of attention along the text: an orange line of sink heads stays low, a grey "
            "line of the others is above it, both far below even attention.",
            'sv.plot_entropy(trace, over="tokens")',
        ),
    ),
    "Sinks of a model": (
        Picture(
            "sink-map",
            "Four by four cells, layers down and heads across, each with its share in per cent; "
            "those above 30 are framed, and they are nearly all.",
            "sv.plot_sink_map(trace)",
        ),
        Picture(
            "score-map",
            "Four by four cells with the lead of the first key before the softmax, in nats: all "
            "are above zero, most between two and five.",
            "sv.plot_score_map(scores)",
        ),
        Picture(
            "scores",
            "Mean scores of one head over 64 texts. The first column is red, high; the other keys "
            "are pale or blue, low.",
            "sv.plot_scores(scores, layer=3, head=0)",
        ),
        Picture(
            "scores-model",
            "Mean scores of sixteen heads as small maps on one scale; each has a red first column.",
            "sv.grid_scores(scores)",
        ),
        Picture(
            "norms",
            "Length of the residual vectors over four layers on a logarithmic axis. The first "
            "token starts ten times above the median token; two others reach it in the last layer.",
            "sv.plot_norms(trace)",
        ),
        Picture(
            "norms-three",
            "Three panels. Residual: the first token far above the median. Key and value: the "
            "first token below all others.",
            "sv.grid_norms(trace)",
        ),
        Picture(
            "value-norms",
            "A cloud of grey squares around the median value norm at low received attention; "
            "orange dots, the first token in each head, at the lower right: it receives half of "
            "the attention and its values are short.",
            "sv.plot_value_norms(trace)",
        ),
    ),
    "Mass by role": (
        Picture(
            "mass-layers",
            "Four stacked bars, one per layer; the orange part of the sinks is the largest.",
            "sv.plot_mass(trace)",
        ),
        Picture(
            "mass-tokens",
            "A stacked area along the text: orange for the sinks at the bottom, hatched grey for "
            "the middle, blue for recent keys, dotted blue for the token itself.",
            'sv.plot_mass(trace, over="tokens")',
        ),
        Picture(
            "mass-steps",
            "A stacked area along the steps of a stream under SinkWindow 4+60. The orange half of "
            "the sinks goes on unchanged after the first eviction.",
            "sv.plot_mass_steps(lanes[sinks], policy=sinks)",
        ),
        Picture(
            "mass-lanes",
            "Two stacked areas. Under Window 0+64 the orange of the sinks ends at the first "
            "eviction and the newest token takes more; under SinkWindow 4+60 it goes on.",
            "sv.grid_mass_steps(lanes)",
        ),
    ),
    "Policies and what they cost": (
        Picture(
            "visibility",
            "A triangle of cells: orange for the two sinks, a blue diagonal band for the recent "
            "keys, hatched for the evicted ones.",
            "sv.plot_visibility(sv.SinkWindow(2, 6))",
        ),
        Picture(
            "visibility-four",
            "Four such triangles: Dense sees all, Window a band, SinkWindow a band and two "
            "columns, Recompute a band and the begin token.",
            "sv.grid_visibility([sv.Dense(), sv.Window(8), sv.SinkWindow(2, 6), sv.Recompute(8)])",
        ),
        Picture(
            "nll",
            "Running mean of the nll against text position for four policies. Window climbs at "
            "the first eviction; SinkWindow and Recompute stay low; Dense climbs after the "
            "training length.",
            "sv.plot_nll(runs, train_length=128)",
        ),
        Picture(
            "sink-sizes",
            "Perplexity after eviction for caches of 64 with 0, 1, 2 and 4 sinks: it falls steeply "
            "from none to one and is flat from there on.",
            "caches = [sv.SinkWindow(n, 64 - n) for n in (1, 2)]\n"
            "more = [sv.score(lm, ids[:2000], policy) for policy in caches]\n"
            "sv.plot_sink_sizes(runs[1:3] + more)",
        ),
        Picture(
            "chat",
            "Two panels along ten questions of a chat. Above, the nll of the questions under "
            "Window and SinkWindow; below, the bytes of their caches, which stay the same.",
            "sv.grid_chat(sv.chat(lm, [window, sinks], rounds=10, answer_tokens=16))",
        ),
    ),
    "Positions": (
        Picture(
            "alibi-slopes",
            "Twelve stems, one per head. Eight halve from 1/2 to 1/256, four square ones lie "
            "between them.",
            "sv.plot_alibi_slopes(12)",
        ),
        Picture(
            "alibi",
            "A fan of eight lines that begin at zero and fall with distance, each half as steep "
            "as the one before.",
            "sv.plot_alibi(8)",
        ),
        Picture(
            "alibi-bias",
            "A triangle of cells, white on the diagonal and the bluer the further the key is from "
            "the query.",
            "sv.plot_alibi_bias(head=1)",
        ),
        Picture(
            "alibi-heads",
            "Eight such triangles on one scale, from deep blue in the first head to nearly white "
            "in the last.",
            "sv.grid_alibi(8)",
        ),
        Picture(
            "rotary",
            "A wavy line that starts at one and falls to about a third: the score of equal "
            "vectors against their distance.",
            "sv.plot_rotary(train_length=128)",
        ),
        Picture(
            "rotary-wheels",
            "Eight wheels with a hand at distance 16, the first past two turns and the last not "
            "moved at all; below, the cosine of all phases as stripes that widen from pair to "
            "pair; at the bottom, their mean.",
            "sv.grid_rotary(train_length=128)",
        ),
    ),
    "Softmax": (
        Picture(
            "softmax",
            "Four bars cut into five keys. Standard: all mass goes to keys. Off by one, a sink "
            "logit and a gate: a hatched part goes nowhere.",
            "sv.plot_softmax([-1.0, -2.0, -1.5, -2.5, -1.0])",
        ),
        Picture(
            "softmax-cases",
            "The same for two sets of logits. With one good key nearly all mass goes to it under "
            "the first three; with none, standard spreads it evenly, and the others let most of it "
            "go nowhere.",
            'even = {"one good key": [0, 0, 4, 0, 0], "no good key": [-2] * 5}\n'
            "sv.grid_softmax(even)",
        ),
    ),
}

# Shown as themselves in the notebook; on the page, and where there is no kernel, as a picture.
WIDGETS: tuple[Picture, ...] = (
    Picture(
        "widget-attention-explorer",
        "Left, a cell for each of sixteen heads, two of them pale: what the first token receives. "
        "Right, the map of one head, with a first column that is dark all the way down.",
        "sv.AttentionExplorer(short)",
    ),
    Picture(
        "widget-sink-slider",
        "Above, nll along a text: full attention climbs after the training length, four sinks and "
        "sixty recent tokens stay low. Below, a bar of where the attention goes, mostly to the "
        "sinks, and a bar of the perplexity.",
        "sv.SinkSlider(lm, ids[:600])",
    ),
    Picture(
        "widget-side-by-side",
        "Three curves of nll: window attention climbs at the first eviction, full attention at the "
        "training length, four sinks stay low. Below, how each text ends; two fall apart.",
        'board = sv.SideBySide(lm, policies[:3], prompt="Once upon a time", capture=True)\n'
        "board.advance(240)\n"
        "board",
    ),
    Picture(
        "widget-cache-player",
        "Above, a row of twenty tokens: the first four filled as sinks, the last eight as recent, "
        "those between hatched. Below, the cache with the twelve that stay.",
        "sv.CachePlayer(sv.SinkWindow(4, 8), short.tokens, step=20)",
    ),
    Picture(
        "widget-softmax-bench",
        "Above, the logits of six keys. Below, four bars of where the mass goes: standard softmax, "
        "off by one, a sink logit and a gate; the last three lose a hatched part to nowhere.",
        "sv.SoftmaxBench()",
    ),
    Picture(
        "widget-alibi-fan",
        "Eight lines fall from zero with distance, the first head's the steepest. Beside them, a "
        "map with a dark first column; with the bias, dark cells lie along the diagonal instead.",
        "sv.AlibiFan(8, short)",
    ),
    Picture(
        "widget-sink-birth",
        "Left, a map of layers and heads at the last training step, twelve of sixteen framed as "
        "sinks. Right, the loss falls smoothly, and the sink rate leaves zero late and at once.",
        "sv.SinkBirth()",
    ),
    Picture(
        "widget-position-lab",
        "Left, perplexity against test length: all schemes rise beyond the training length but "
        "ALiBi, which falls. Right, the mean cosine of the rotary angles against distance.",
        "sv.PositionLab()",
    ),
)

# What is seen in the figures of recorded experiments; their question is said before it.
SEEN = {
    "x_plus_y": "Perplexity is high without a first token, falls by half with one, and is flat for "
    "two, four and eight. Four newlines in their place are as bad as none.",
    "cache_sizes": "Perplexity falls a little as the cache grows up to the training length, and "
    "rises steeply beyond it.",
    "token_or_position": "Eight bars. The first token takes about 40 per cent wherever it is put, "
    "and nothing else takes its share when it is gone.",
    "inside_a_sink": "Four panels of norms: values and keys of the first token are short, its "
    "residual vector and largest activation are huge. Below, bars of mass by role: forbidding the "
    "first token costs most.",
    "sink_birth": "The sink rate is zero for thousands of steps, then climbs to three quarters, "
    "while the loss falls slowly; the first token's share grows in every layer.",
    "attention_costs": "Time and memory written out rise with the square of the length, others "
    "less; a window needs sinks, and shared keys shrink the cache.",
    "retrained": "A row of dots per model: seeds of the classroom model lose much without sinks, "
    "of the standard softmax little, of off-by-one next to nothing. Of the variants a weight decay "
    "of 0.5 lies furthest beyond the seeds.",
    "retrained_lengths": "Nine curves of perplexity against length in three tight bundles, one per "
    "scheme: the three seeds of ALiBi fall together, those of rotary and sinusoidal positions "
    "rise.",
    "limits": "Left, what a changed beginning still changes dies out after a few caches. Right, "
    "right answers fall to chance once the answer is further away than the cache.",
}
