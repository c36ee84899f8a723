// Making elements. Strings become text, never HTML: no file here knows innerHTML.

import { ICONS } from "../vendor/icons.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * h("button", {class: "primary", onclick: send, disabled: true, "aria-label": "Send"}, "Send")
 *
 * Functions become listeners; true and false set and leave out an attribute; null and undefined
 * are left out; `value`, `checked` and `open` are properties. Children: nodes, text, or null.
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const PROPERTIES = new Set(["value", "checked", "indeterminate"]);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An icon of vendor/icons.js; it says nothing to screen readers. */
export function icon(name) {
  const shapes = ICONS[name].map(([tag, attributes]) => s(tag, attributes));
  return s("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, shapes);
}

/** A button that shows an icon only; the label is its tooltip and what screen readers say. */
export function iconButton(name, label, onclick, attributes = {}) {
  const all = { type: "button", class: "icon-button", "aria-label": label, title: label, onclick };
  return h("button", { ...all, ...attributes }, icon(name));
}

export function textButton(name, label, onclick, attributes = {}) {
  const all = { type: "button", class: "button", onclick, ...attributes };
  return h("button", all, name ? icon(name) : null, h("span", {}, label));
}

/** A checkbox that looks like a switch. */
export function switchButton(label, checked, onchange, attributes = {}) {
  const box = h("input", {
    type: "checkbox",
    role: "switch",
    checked,
    onchange: () => onchange(box.checked),
    ...attributes,
  });
  return h("label", { class: "switch" }, box, h("span", {}, label));
}

let lastId = 0;

/** An id that no other element of the page has. */
export function newId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}

/** Offers a text as a file. */
export function saveFile(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
