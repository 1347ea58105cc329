/** A model's Markdown to DOM nodes that can do no harm: it is not trusted, its HTML is text, its images stay out. */

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const TAGS =
  "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong del a table thead tbody tr th td".split(" ");
const CLEAN = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  // Absolute only: a relative link would point into this very server, under the person's name.
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const purify = globalThis.DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A" && node.hasAttribute("href")) {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
});

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ text }) => escapeHtml(text ? `[image: ${text}]` : "[image]"),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/** Returns a DocumentFragment. */
export function render(markdown) {
  let html;
  try {
    html = marked.parse(markdown);
  } catch {
    html = `<pre>${escapeHtml(markdown)}</pre>`; // nested deeper than the parser's stack
  }
  return purify.sanitize(html, CLEAN);
}

/** Shows `markdown` in `target`, touching only what changed, so that a selection in the text above stays. */
export function renderInto(target, markdown) {
  const fresh = render(markdown);
  let old = target.firstChild;
  while (old && fresh.firstChild && old.isEqualNode(fresh.firstChild)) {
    fresh.firstChild.remove();
    old = old.nextSibling;
  }
  while (old) {
    const next = old.nextSibling;
    old.remove();
    old = next;
  }
  target.append(fresh);
}

function escapeHtml(text) {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}
