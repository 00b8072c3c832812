"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const STEP = 200;
let shown = STEP, current = null, order = [];

function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function bar(x, y, width, height, kind) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const set = { x, y, width, height, class: kind };
  for (const key in set) node.setAttribute(key, set[key]);
  return node;
}

function label(x, y, text, anchor) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "text");
  const set = { x, y, "text-anchor": anchor };
  for (const key in set) node.setAttribute(key, set[key]);
  node.textContent = text;
  return node;
}

const share = latent => data.fired[latent] / data.rows;
const percent = value => value === 0 ? "never" : value < 0.0001 ? (value * 1e6).toFixed(0) + " / million" : (value * 100).toPrecision(2) + " %";
const visible = text => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
const examples = latent => ["positive", "negative", "sampled"].flatMap(kind => data.latents[latent][kind]);
const peakOf = example => example.a[example.p];
const strongest = latent => Math.max(0, ...examples(latent).map(example => Math.abs(peakOf(example))));

function hint(latent) {
  const detail = data.latents[latent];
  const words = [...detail.positive.slice(0, 3), ...detail.negative.slice(0, data.signed ? 2 : 0)];
  return [...new Set(words.map(example => visible(data.vocabulary[example.t[example.p]]).trim() || "␣"))].join(" · ");
}

const texts = new Map();
function searchable(latent) {
  if (!texts.has(latent)) {
    const detail = data.latents[latent];
    const tokens = [...(detail.up || []), ...(detail.down || [])].map(pair => data.vocabulary[pair[0]]);
    const whole = examples(latent).map(example => example.t.map(token => data.vocabulary[token]).join(""));
    texts.set(latent, [...whole, ...tokens].join("\n").toLowerCase());
  }
  return texts.get(latent);
}

function arrange() {
  const asked = at("search").value.trim().toLowerCase();
  const all = Object.keys(data.latents).map(Number);
  const number = /^#?\d+$/.test(asked) ? Number(asked.replace("#", "")) : null;
  order = all.filter(latent => !asked || latent === number || searchable(latent).includes(asked));
  const by = {
    fired: (a, b) => data.fired[b] - data.fired[a], rare: (a, b) => data.fired[a] - data.fired[b],
    max: (a, b) => strongest(b) - strongest(a), number: (a, b) => a - b,
  }[at("order").value];
  order.sort(by);
  if (number !== null) order.sort((a, b) => (b === number) - (a === number));
  shown = STEP;
  list();
}

function list() {
  at("list").replaceChildren(...order.slice(0, shown).map(latent => {
    const button = make("button", { type: "button", "aria-current": String(latent === current) },
      make("b", { text: latent }), make("span", { class: "hint", text: hint(latent) }),
      make("span", { class: "much", text: percent(share(latent)) }));
    button.onclick = () => { location.hash = latent; };
    return make("li", {}, button);
  }));
  at("count").textContent = order.length === 1 ? "1 latent" : order.length.toLocaleString("en") + " latents";
  at("more").hidden = shown >= order.length;
}

function exampleRow(example, scale) {
  const text = make("p");
  example.t.forEach((token, place) => {
    const value = example.a[place], strength = Math.min(1, Math.abs(value) / scale);
    const piece = make("span", { text: visible(data.vocabulary[token]) });
    if (value) {
      piece.style.background = `rgba(var(${value > 0 ? "--pos" : "--neg"}), ${(0.08 + 0.62 * strength).toFixed(2)})`;
      piece.title = value.toPrecision(3);
    }
    if (place === example.p) piece.className = "top";
    text.append(piece);
  });
  return make("div", { class: "example" }, make("span", { class: "peak", text: peakOf(example).toPrecision(3) }), text);
}

function histogram(bars) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 420 84");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "Histogram of activations");
  const used = bars.flatMap(signed => signed.flatMap((count, bin) => count ? [bin] : []));
  const first = Math.min(...used), last = Math.max(...used), most = Math.max(...bars.flat());
  const negative = bars[1].some(count => count), span = last - first + 1;
  const width = (negative ? 200 : 410) / span;
  const draw = (count, bin, kind) => {
    if (!count) return;
    const height = 4 + 60 * Math.log1p(count) / Math.log1p(most);
    const x = kind === "neg" ? 200 - (bin - first + 1) * width : (negative ? 210 : 5) + (bin - first) * width;
    svg.append(bar(x, 66 - height, Math.max(1, width - 1.5), height, kind));
  };
  bars[0].forEach((count, bin) => draw(count, bin, "pos"));
  bars[1].forEach((count, bin) => draw(count, bin, "neg"));
  const size = bin => (2 ** (data.octave + bin / data.perOctave)).toPrecision(2);
  if (negative) svg.append(label(0, 79, "−" + size(last + 1), "start"));
  svg.append(label(negative ? 205 : 5, 79, negative ? "± " + size(first) : size(first), negative ? "middle" : "start"), label(415, 79, size(last + 1), "end"));
  return svg;
}

function tokenList(title, pairs) {
  return make("div", {}, make("h3", { text: title }), make("ul", {}, ...pairs.map(([token, amount]) =>
    make("li", {}, make("code", { text: visible(data.vocabulary[token]) }), make("span", { text: (amount > 0 ? "+" : "") + amount.toFixed(2) })))));
}

function neighbours(pairs) {
  return make("div", {}, make("h3", { text: "Most similar directions" }), make("ul", {}, ...pairs.map(([other, cosine]) => {
    const known = other in data.latents;
    const name = known ? make("a", { href: "#" + other, text: other + "  " + hint(other) }) : make("span", { text: String(other) });
    return make("li", {}, name, make("span", { text: cosine.toFixed(2) }));
  })));
}

function section(title, rows, scale) {
  return rows.length ? [make("h3", { text: title }), ...rows.map(example => exampleRow(example, scale))] : [];
}

function show(latent) {
  current = latent;
  const detail = data.latents[latent], scale = strongest(latent) || 1;
  const pole = data.signed ? ["Strongest positive contexts", "Strongest negative contexts"] : ["Strongest contexts", ""];
  const parts = [
    make("h2", { text: "Latent " + latent }),
    make("p", { class: "figures" }, make("span", {}, "fires on ", make("b", { text: percent(share(latent)) }), " of tokens"),
      make("span", {}, "mean where it fires ", make("b", { text: detail.mean.toPrecision(3) })),
      make("span", {}, "strongest ", make("b", { text: scale.toPrecision(3) }))),
  ];
  if (data.fired[latent]) {
    parts.push(make("h3", { text: "Activations (both axes logarithmic)" }), histogram(detail.bars));
  } else parts.push(make("p", { class: "empty", text: "It fired on none of the tokens that were read." }));
  const columns = make("div", { class: "columns" }, neighbours(detail.near));
  if (detail.up) columns.append(tokenList("Makes likelier", detail.up), tokenList("Makes less likely", detail.down));
  parts.push(columns);
  if (data.effects) parts.push(make("p", { class: "note", text: data.effects }));
  parts.push(...section(pole[0], detail.positive, scale), ...section(pole[1], detail.negative, scale),
    ...section("Random contexts in which it fires", detail.sampled, scale));
  at("detail").replaceChildren(...parts);
  document.querySelectorAll("#list button").forEach(button =>
    button.setAttribute("aria-current", String(Number(button.querySelector("b").textContent) === latent)));
}

function densities() {
  const bins = Array(24).fill(0), lowest = -6;
  data.fired.forEach(fired => { if (fired) bins[Math.min(23, Math.max(0, Math.floor((Math.log10(fired / data.rows) - lowest) * 4)))]++; });
  const most = Math.max(1, ...bins);
  bins.forEach((count, bin) => at("densities").append(bar(4 + bin * 12.2, 70 - 62 * count / most, 11, 62 * count / most, "")));
  [["1 / million", 4, "start"], ["0.1 %", 150, "middle"], ["all", 297, "end"]].forEach(([text, x, anchor]) => at("densities").append(label(x, 84, text, anchor)));
}

function follow() {
  const latent = Number(location.hash.slice(1));
  if (location.hash.length > 1 && latent in data.latents) show(latent);
  else if (order.length) show(order[0]);
  else at("detail").replaceChildren(make("p", { class: "empty", text: "No latent has examples here." }));
}

document.title = data.title;
at("title").textContent = data.title;
at("facts").append(...data.facts.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
at("search").oninput = () => { arrange(); };
at("order").onchange = () => { arrange(); };
at("more").onclick = () => { shown += STEP; list(); };
window.onhashchange = follow;
arrange();
densities();
follow();
