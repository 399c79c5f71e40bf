// Stands after a widget's module in a page of its own: a model that keeps what it is set to and
// tells its listeners, and that nobody answers. `model.get("offline")` says so.

function pageModel(state) {
  const heard = new Map();
  const listeners = (event) => heard.get(event) ?? heard.set(event, new Set()).get(event);
  return {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const act of [...listeners(`change:${name}`)]) act();
    },
    on: (event, act) => listeners(event).add(act),
    off: (event, act) => listeners(event).delete(act),
    save_changes() {},
    send() {},
  };
}

async function unpacked(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpacked));
  if (value === null || typeof value !== "object") return value;
  if ("$bytes" in value) {
    const raw = Uint8Array.from(atob(value.$bytes), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new DataView(await new Response(stream).arrayBuffer());
  }
  const entries = await Promise.all(
    Object.entries(value).map(async ([name, one]) => [name, await unpacked(one)]),
  );
  return Object.fromEntries(entries);
}

const state = await unpacked(JSON.parse(document.getElementById("state").textContent));
const model = pageModel(state);
const { initialize, render: show } = typeof widget === "function" ? await widget() : widget;
await initialize?.({ model });
await show({ model, el: document.getElementById("widget") });
