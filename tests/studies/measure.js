// The faults of the pages in the frames of this one, each with the elements to blame.
const numbers = colour => colour.match(/[\d.]+/g).map(Number);
const luminance = colour => {
  const [r, g, b] = numbers(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const across = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1;
const inside = (a, b) => across(a, b) && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
// A line is higher than its letters: it takes more than a touch.
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.3 * Math.min(a.height, b.height);

function measure(frame) {
  const view = frame.contentWindow, root = frame.contentDocument, body = root.body, faults = {};
  const style = element => view.getComputedStyle(element);
  const above = element => element.parentElement ? [element.parentElement, ...above(element.parentElement)] : [];
  const blame = (fault, element, what = "") =>
    (faults[fault] ??= []).push(`${element.outerHTML.slice(0, 120)} ${element.textContent.slice(0, 40)} ${what}`);
  const all = [...root.querySelectorAll("*")];
  const screen = {left: 0, right: root.documentElement.clientWidth};

  if (root.documentElement.scrollWidth > screen.right) blame("wide", root.documentElement, "scrolls sideways");
  for (const element of body.querySelectorAll(":not(svg *)")) {
    const box = element.getBoundingClientRect();
    const scrolls = above(element).some(e => ["auto", "scroll"].includes(style(e).overflowX));
    if (box.width && !scrolls && !across(box, screen)) blame("wide", element);
  }

  for (const element of all)
    for (const {name, value} of element.attributes) {
      if (name.startsWith("on")) blame("script", element);
      if (["src", "srcset", "href", "xlink:href", "data", "poster", "action"].includes(name)
        && !/^(#|data:image\/)/.test(value)) blame("elsewhere", element);
    }
  root.querySelectorAll("script").forEach(element => blame("script", element));
  for (const [, url] of root.documentElement.outerHTML.matchAll(/(?:url\(|@import\s)\s*["']?(?!#)([^"')\s]+)/g))
    blame("elsewhere", body, url);
  for (const entry of view.performance.getEntriesByType("resource"))
    if (!entry.name.startsWith("data:")) blame("elsewhere", body, entry.name);

  for (const image of root.images)
    if (!(image.complete && image.naturalWidth && image.alt.trim())) blame("image", image);
  for (const svg of root.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    if (!(box.width && box.height && svg.getAttribute("aria-label")?.trim())) blame("drawing", svg);
    const words = [...svg.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()]);
    words.forEach(([text, own], i) => {
      if (!inside(own, box)) blame("cut", text);
      if (words.slice(i + 1).some(([, other]) => meet(own, other))) blame("overlap", text);
    });
  }

  let texts = 0;
  const walker = root.createTreeWalker(body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("style, script, defs")) continue;
    texts += 1;
    const drawn = element.closest("svg text"), chain = [element, ...above(element)];
    const ground = chain.map(e => style(e).backgroundColor).find(colour => numbers(colour)[3] !== 0);
    const ratio = contrast(drawn ? style(element).fill : style(element).color, ground);
    if (ratio < 4.5) blame("contrast", element, ratio);
    const scale = drawn ? Math.hypot(drawn.getScreenCTM().a, drawn.getScreenCTM().b) : 1;
    const size = scale * parseFloat(style(element).fontSize);
    if (size < 9) blame("small", element, size);
    if (drawn) continue;
    const range = root.createRange();
    range.selectNodeContents(walker.currentNode);
    const box = range.getBoundingClientRect();
    const holder = chain.find(e => style(e).display !== "inline");
    const clips = chain.filter(e => ["hidden", "clip"].includes(style(e).overflowX));
    if (!box.width || !across(box, holder.getBoundingClientRect())
      || clips.some(e => !inside(box, e.getBoundingClientRect()))) blame("cut", element);
  }

  const ids = all.map(e => e.id).filter(Boolean);
  for (const element of all) {
    if (element.id && ids.filter(id => id === element.id).length > 1) blame("id", element);
    for (const [, id] of (element.cloneNode().outerHTML).matchAll(/(?:href="|url\((?:&quot;)?)#([^")&]+)/g))
      if (!ids.includes(id)) blame("id", element, "refers to nothing");
  }
  const levels = [...root.querySelectorAll("h1, h2, h3, h4")].map(h => Number(h.tagName[1]));
  if (levels.filter(level => level === 1).length !== 1 || levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1))
    blame("headings", body, levels);
  if (!root.documentElement.lang || !root.title.trim()) blame("document", root.documentElement);

  const table = root.querySelector(".scroll table");
  const shown = table ? [...table.rows[0].cells].filter(
    cell => across(cell.getBoundingClientRect(), table.parentElement.getBoundingClientRect())) : [];

  return {
    shown: shown.map(cell => cell.textContent),
    faults, texts, width: screen.right, images: root.images.length, drawings: root.querySelectorAll("svg").length,
    ground: style(body).backgroundColor, ink: style(body).color,
  };
}
addEventListener("load", () => {
  const measured = document.createElement("pre");
  measured.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
  document.body.replaceChildren(measured);
});
