// The text as a line of tokens, shaded by what one of them reads, or by who reads it; a search over
// all of it; and the strongest of the line as a list. Tokens are only ever text nodes.

const MOST_TOKENS = 320; // in the page at a time, around the one in question
const MOST_STRONGEST = 6;

function tokenLine(store, get, { hover, pin }) {
  const box = html("div", { class: "tokens", role: "listbox", "aria-label": "Tokens of the text" });
  const where = html("span", { class: "soft" });
  const strongest = html("ol", { class: "strongest" });
  const n = get("n_tokens");
  let first = -1;
  let spans = [];
  let matches = new Set();
  let hot = 0; // the token in the order of tabs
  let refocus = false; // after a move by keyboard, which may bring other tokens in
  let shown = null; // the pinned token that was scrolled to
  let drawn = []; // what the line was drawn from

  const indexOf = (event) => {
    const span = event.target.closest?.("[role=option]");
    return span ? first + spans.indexOf(span) : null;
  };
  box.addEventListener("pointerover", (event) => {
    const token = indexOf(event);
    if (token !== null) hover(token);
  });
  box.addEventListener("pointerleave", () => hover(null));
  box.addEventListener("click", (event) => {
    const token = indexOf(event);
    if (token !== null) pin(token === get("token") ? null : token);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, PageDown: 100, PageUp: -100, Home: -n, End: n }[event.key];
    if (event.key === "Escape") pin(null);
    else if (event.key === "Enter" || event.key === " ") pin(hot === get("token") ? null : hot);
    else if (step) {
      hot = Math.min(Math.max(hot + step, 0), n - 1);
      pin(hot);
      refocus = true;
    } else return;
    event.preventDefault();
  });

  function reveal(token) {
    const span = spans[token - first];
    if (!span) return;
    const [top, bottom] = [span.offsetTop, span.offsetTop + span.offsetHeight];
    if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 3;
  }

  function fill(from, tokens) {
    first = from;
    const shown = tokens.slice(first, first + MOST_TOKENS);
    spans = shown.map((text, i) => control("span", { role: "option", tabindex: -1, "aria-label": `${first + i}: ${text.trim() || text}` }, text));
    box.replaceChildren(...spans);
  }

  return {
    box,
    where,
    strongest,
    set matches(found) {
      matches = new Set(found);
    },
    // `from` is where the text to show begins, unless the token in question lies elsewhere.
    draw({ token, line, way, palette, from }) {
      const tokens = store.tokens();
      if (!tokens) return;
      const within = (at) => first >= 0 && at >= first && at < first + spans.length;
      const pinned = get("token");
      const now = [token, line, way, palette.id, pinned, matches, Math.floor(from), String(get("sinks"))];
      if (!refocus && now.every((one, i) => one === drawn[i])) return;
      drawn = now;
      const sinks = new Set(get("sinks"));
      const anchor = pinned ?? Math.floor(from);
      if (first < 0 || (n > MOST_TOKENS && !within(anchor))) {
        fill(Math.min(Math.max(0, anchor - (pinned === null ? 0 : MOST_TOKENS / 2)), Math.max(0, n - MOST_TOKENS)), tokens);
      }
      hot = within(pinned ?? hot) ? (pinned ?? hot) : first;
      spans.forEach((span, i) => {
        const at = first + i;
        const value = line ? (line.values[Math.floor(at / line.cell)] ?? 0) : 0;
        const outside = token !== null && (way === "keys" ? at > token : at < token);
        span.classList.toggle("outside", outside);
        span.classList.toggle("here", at === token);
        span.classList.toggle("sink-token", sinks.has(at));
        span.classList.toggle("match", matches.has(at));
        span.setAttribute("aria-selected", at === pinned);
        span.tabIndex = at === hot ? 0 : -1;
        const lit = token !== null && !outside && value > 0.0005;
        const [red, green, blue] = lit ? palette.rgb(value) : [0, 0, 0];
        span.style.background = lit ? `rgb(${red},${green},${blue})` : "";
        span.style.color = lit ? (0.2126 * red + 0.7152 * green + 0.0722 * blue > 110 ? "#111" : "#fff") : "";
      });
      if (refocus) spans[hot - first]?.focus({ preventScroll: true });
      refocus = false;
      if (pinned !== shown) reveal((shown = pinned) ?? -1);
      const last = first + spans.length;
      where.textContent = spans.length < n ? `tokens ${count(first)} to ${count(last - 1)} of ${count(n)}` : `${count(n)} tokens`;
      this.list(token, line, tokens, palette);
    },
    // The strongest cells of a line, each with a bar; the whole text counts, not only what is shown.
    list(token, line, tokens, palette) {
      if (token === null || !line) {
        strongest.replaceChildren();
        return;
      }
      const order = [...line.values.keys()].sort((a, b) => line.values[b] - line.values[a]).slice(0, MOST_STRONGEST);
      strongest.replaceChildren(...order.filter((i) => line.values[i] > 0.0005).map((i) => {
        const at = i * line.cell;
        const text = line.cell > 1 ? `tokens ${count(at)} to ${count(Math.min(n, at + line.cell) - 1)}` : tokens[at];
        const jump = control("button", { type: "button" }, html("bdi", {}, text), html("span", { class: "soft" }, line.cell > 1 ? "" : ` ${count(at)}`));
        jump.addEventListener("click", () => pin(at));
        const bar = html("i", { style: `width: ${100 * Math.min(1, line.values[i])}%; background: ${palette.css(Math.max(0.2, line.values[i]))}` });
        return html("li", {}, jump, html("span", { class: "gauge" }, bar), html("b", {}, percent(line.values[i])));
      }));
    },
  };
}

// Where a text occurs, also across tokens: the tokens of each match, in order.
function search(tokens, wanted) {
  const needle = wanted.toLowerCase();
  if (!needle) return [];
  const lower = tokens.map((token) => token.toLowerCase());
  const starts = [];
  let length = 0;
  for (const token of lower) {
    starts.push(length);
    length += token.length;
  }
  const text = lower.join("");
  const found = [];
  let token = 0;
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + 1)) {
    while (token + 1 < starts.length && starts[token + 1] <= at) token += 1;
    let last = token;
    while (last + 1 < starts.length && starts[last + 1] < at + needle.length) last += 1;
    if (found.at(-1)?.[0] !== token) found.push(Array.from({ length: last - token + 1 }, (_, i) => token + i));
  }
  return found;
}
