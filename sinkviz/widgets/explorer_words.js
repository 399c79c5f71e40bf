// What the explorer says about what it shows, as plain sentences.

function explorerWords(store, get, map) {
  const named = (token) => {
    const tokens = store.tokens();
    return tokens ? `${count(token)} \u201c${tokens[token].trim() || tokens[token]}\u201d` : count(token);
  };
  // Who takes: the first tokens, another one, or several.
  const whom = () => {
    const sinks = get("sinks");
    if (sinks.every((one, i) => one === i)) return sinks.length === 1 ? "the first token takes" : `the first ${sinks.length} tokens take`;
    if (sinks.length === 1) return `token ${named(sinks[0])} takes`;
    return sinks.length < 5 ? `tokens ${sinks.slice(0, -1).map(count).join(", ")} and ${count(sinks.at(-1))} take` : `${sinks.length} sink tokens take`;
  };
  const title = () => `Layer ${get("layer")}, head ${get("head")}`;

  return {
    title,
    verdict(value, rest) {
      if (!Number.isFinite(value)) return "";
      return rest
        ? `${whom()} ${percent(value)}; this is the other ${percent(1 - value)}, each row rescaled to one`
        : `${whom()} ${percent(value)} of the attention, mean over queries`;
    },
    caption(rest) {
      const cell = map.level(get("layer"), get("head"));
      const finest = store.finest(get("layer"), get("head"));
      const [alone, held] = [store.silent(), get("thumb_cell")];
      const cellOf = (size) => `a cell is the largest of ${size} \u00d7 ${size} tokens`;
      const notes = [];
      if (!finest) notes.push("The trace kept no map of this head.");
      else if (alone === "page" && held > 1) notes.push(`In this page ${cellOf(held)}.`);
      else if (finest > 1) notes.push(`The trace kept pooled maps: ${cellOf(finest)}${rest ? ", the sink\u2019s cells taken out" : ""}.`);
      else if (cell > 1) notes.push(`Seen from here ${cellOf(cell)}; zoom in for each.`);
      if (alone === "silent") notes.push("No kernel answers: a coarse picture.");
      return [...notes, "Drag a box to zoom, click to pin, double-click for the whole."].join(" ");
    },
    about(token) {
      if (token === null) return "Point at a token or a cell, or pin one, to see what it reads.";
      return `Token ${named(token)}${token === get("token") ? ", pinned" : ""}: `;
    },
    // One query and key: exact where the line of the query is here.
    readout(pointed, without) {
      if (!pointed) return "\u00a0";
      const { query, key } = pointed;
      if (key > query) return `query ${named(query)} comes before key ${named(key)} and cannot see it`;
      const row = store.line(get("layer"), get("head"), query, "keys", without);
      const exact = row?.exact && row.cell === 1;
      const [found, size] = exact ? [row.values[key], 1] : store.share(get("layer"), get("head"), without, query, key);
      return `query ${named(query)} reads key ${named(key)}: ${found === null ? "\u2013" : percent(found)}${size > 1 ? ` at most (${size} \u00d7 ${size} tokens)` : ""}`;
    },
    // For a screen reader: where we are, and who takes how much.
    where: (value, rest) => `${title()}${rest ? " without the sink" : ""}${Number.isFinite(value) ? `, ${whom()} ${percent(value)}` : ""}.`,
    strongest(token, line) {
      const best = [...line.values.keys()].sort((a, b) => line.values[b] - line.values[a]).slice(0, 3).filter((i) => line.values[i] > 0.0005);
      const list = best.map((i) => `${named(i * line.cell)} ${percent(line.values[i])}`).join(", ");
      return ` Token ${named(token)} ${get("way") === "keys" ? "reads" : "is read by"} ${list || "nobody"}.`;
    },
  };
}
