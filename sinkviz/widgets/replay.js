// Stands in for the kernel in a page: the lanes of a recorded run, as they were after any of its
// steps. Every number was computed before; here they are only looked up.

const POINTS = 200; // of a sparkline, as in lanes.py
const FASTEST = 20; // steps per picture where speed has no limit

const mapped = (object, act) => Object.fromEntries(Object.entries(object).map(([name, one]) => [name, act(one)]));

function replay(model) {
  const get = (name) => model.get(name);
  const before = get("before");
  const length = get("length");
  const fixed = get("lanes");
  const recorded = get("recording").map((lane) => ({
    ...lane, nll: floats(lane.nll), gone: floats(lane.gone), series: mapped(lane.series, floats),
  }));
  let place = length;
  let due = 0;
  let timer = null;

  // A lane after `place` steps, with the text of its last `n` tokens: what LaneRecord.state says.
  function stateOf(lane, i, n) {
    const end = fixed[i].start + place;
    const first = Math.max(lane.first, end - TAIL);
    const from = Math.max(first, end - n) - lane.first;
    let bin = 1;
    while (Math.floor(place / bin) > POINTS) bin *= 2;
    const flags = new Uint8Array(end - first);
    for (let at = first; at < end; at += 1) {
      const step = lane.gone[at - lane.first];
      flags[at - first] = step > 0 && step <= place ? (step === place ? 2 : 1) : 0;
    }
    const points = Float32Array.from({ length: Math.floor(place / bin) },
      (_, k) => lane.series.mean[(k + 1) * bin - before] ?? NaN);
    return {
      end, head: lane.head, tokens: lane.tokens.slice(from, end - lane.first),
      nll: lane.nll.subarray(from, end - lane.first), evicted: new DataView(flags.buffer),
      points, bin, span: place, ...mapped(lane.series, (values) => values[place - before]),
    };
  }
  const states = (n) => recorded.map((lane, i) => stateOf(lane, i, n));

  function seek(to) {
    place = Math.min(Math.max(Math.round(to), before), length);
    model.set("finished", place === length);
    model.set("tail", states(TAIL));
  }
  function goOn(n) {
    const ran = Math.min(n, length - place);
    place += ran;
    model.set("tick", states(ran));
    model.set("finished", place === length);
  }
  function stop() {
    cancelAnimationFrame(timer);
    timer = null;
  }
  function play(then) {
    const begun = performance.now();
    due = get("speed") ? due + (Math.min(begun - then, 500) / 1000) * get("speed") : FASTEST;
    const steps = Math.floor(due);
    due -= steps;
    if (steps) goOn(steps);
    if (place === length) model.set("playing", false);
    else timer = requestAnimationFrame(() => play(begun));
  }
  model.on("change:playing", () => {
    stop();
    if (!get("playing")) return;
    if (place === length) seek(before);
    due = 1;
    play(performance.now());
  });
  const acts = {
    step() {
      model.set("playing", false);
      if (place < length) goOn(1);
    },
    reset() {
      model.set("playing", false);
      seek(before);
    },
    seek({ to }) {
      model.set("playing", false);
      seek(to);
    },
  };
  model.send = (content) => acts[content.do]?.(content);
  seek(length);
}
