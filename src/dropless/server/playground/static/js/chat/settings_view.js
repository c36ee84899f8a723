// The settings of one pane at a time: system prompt and parameters, each with its explanation.

import { h, iconButton, newId, textButton } from "../dom.js";
import { PARAMETERS, parameterText, parseParameter } from "./parameters.js";

const NARROW = matchMedia("(max-width: 60rem)");

export class SettingsView {
  constructor(chat, element) {
    this.chat = chat;
    this.element = element;
    this.pane = null;
    this.opener = null;
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // it stops no answer
      this.close();
    });
    chat.addEventListener("open", () => this.refresh());
    chat.addEventListener("pane", ({ detail }) => {
      const editing = element.contains(document.activeElement);
      if (detail === this.pane && !editing) this.draw();
    });
  }

  get isOpen() {
    return !this.element.hidden;
  }

  toggle(pane) {
    if (this.isOpen && this.pane === pane) this.close();
    else this.open(pane);
  }

  open(pane) {
    this.opener ??= document.activeElement;
    this.pane = pane;
    this.element.hidden = false;
    document.body.classList.add("with-settings");
    this.draw();
    this.element.querySelector("textarea").focus({ preventScroll: !NARROW.matches });
  }

  close() {
    this.element.hidden = true;
    this.pane = null;
    document.body.classList.remove("with-settings");
    this.opener?.focus();
    this.opener = null;
  }

  refresh() {
    if (!this.isOpen) return;
    const { panes } = this.chat.conversation;
    if (!panes.includes(this.pane)) this.pane = panes[0];
    this.draw();
  }

  draw() {
    const { panes } = this.chat.conversation;
    const rows = PARAMETERS.filter((parameter) => !parameter.more).map((p) => this.field(p));
    const more = PARAMETERS.filter((parameter) => parameter.more);
    const anyMore = more.some((parameter) => this.pane.parameters[parameter.name] !== undefined);
    this.element.replaceChildren(
      h("div", { class: "settings-head" }, h("h2", {}, "Settings"), iconButton("x", "Close settings", () => this.close())),
      panes.length > 1 ? this.tabs() : "",
      h(
        "div",
        { class: "settings-body" },
        this.systemField(),
        ...rows,
        h("details", { open: anyMore }, h("summary", {}, "Penalties and min p"), h("div", { class: "settings-more" }, more.map((p) => this.field(p)))),
        h(
          "div",
          { class: "settings-actions" },
          panes.length > 1 ? textButton("copy", "Copy to all panes", () => this.chat.copySettings(this.pane)) : null,
          textButton("eraser", "Reset", () => this.reset()),
        ),
      ),
    );
  }

  tabs() {
    const { panes } = this.chat.conversation;
    const tab = (pane, i) =>
      h(
        "button",
        { type: "button", "aria-pressed": String(pane === this.pane), title: pane.model, onclick: () => this.open(pane) },
        `Pane ${i + 1}`,
      );
    return h("div", { class: "pane-tabs", role: "group", "aria-label": "Settings of" }, panes.map(tab));
  }

  reset() {
    this.chat.change(this.pane, { system: "", parameters: {} });
    this.draw();
    this.element.querySelector("textarea").focus();
  }

  systemField() {
    const id = newId("system");
    const area = h("textarea", {
      class: "input",
      id,
      rows: 5,
      value: this.pane.system,
      placeholder: "The model's own",
      "aria-describedby": `${id}-help`,
      oninput: () => this.chat.change(this.pane, { system: area.value }),
    });
    const help = "Who the assistant is and how it answers. It replaces the model's own system prompt whole.";
    return h("div", { class: "field" }, h("label", { for: id }, "System prompt"), area, h("p", { class: "help", id: `${id}-help` }, help));
  }

  set(name, value) {
    const parameters = { ...this.pane.parameters };
    if (value === undefined) delete parameters[name];
    else parameters[name] = value;
    this.chat.change(this.pane, { parameters });
  }

  field(parameter) {
    const id = newId(parameter.name);
    const problem = h("p", { class: "problem", id: `${id}-problem`, role: "alert" });
    const help = h("p", { class: "help", id: `${id}-help` }, parameter.help);
    const build = { format: formatControls, lines: linesControl }[parameter.kind] ?? numberControls;
    const controls = build(this, parameter, id, problem);
    return h(
      "div",
      { class: "field" },
      h("label", { for: id }, parameter.label, h("code", { class: "parameter-name" }, parameter.name)),
      controls,
      problem,
      help,
    );
  }
}

/** Takes over what is in a field, or says why not. */
function take(view, parameter, input, problem) {
  try {
    view.set(parameter.name, parseParameter(parameter, input.value));
    problem.textContent = "";
    input.removeAttribute("aria-invalid");
  } catch (error) {
    problem.textContent = error.message;
    input.setAttribute("aria-invalid", "true");
  }
}

function attributesOf(parameter, id) {
  return {
    class: "input number",
    id,
    placeholder: String(parameter.standard),
    "aria-describedby": `${id}-help ${id}-problem`,
  };
}

function numberControls(view, parameter, id, problem) {
  const value = view.pane.parameters[parameter.name];
  const input = h("input", {
    ...attributesOf(parameter, id),
    inputmode: "decimal",
    autocomplete: "off",
    value: parameterText(parameter, value),
    oninput: () => take(view, parameter, input, problem),
  });
  return parameter.slider ? h("div", { class: "slider-row" }, slider(parameter, input), input) : input;
}

/** Moves with the number that it stands beside, and moves it. */
function slider(parameter, input) {
  const { min, max, step, label, standard } = parameter;
  const range = h("input", { type: "range", min, max, step, "aria-label": `${label}, slider` });
  const follow = () => (range.value = input.value || standard);
  range.addEventListener("input", () => {
    input.value = range.value;
    input.dispatchEvent(new Event("input"));
  });
  input.addEventListener("input", follow);
  follow();
  return range;
}

function linesControl(view, parameter, id, problem) {
  const area = h("textarea", {
    ...attributesOf(parameter, id),
    class: "input code",
    rows: 2,
    value: parameterText(parameter, view.pane.parameters[parameter.name]),
    oninput: () => take(view, parameter, area, problem),
  });
  return area;
}

const SCHEMA = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };

function formatControls(view, parameter, id, problem) {
  const value = view.pane.parameters.response_format;
  const schema = h("textarea", {
    class: "input code",
    rows: 7,
    "aria-label": "JSON schema",
    value: JSON.stringify(value?.json_schema?.schema ?? SCHEMA, null, 2),
    hidden: value?.type !== "json_schema",
    spellcheck: "false",
    oninput: () => takeFormat(),
  });
  const kinds = { text: "Text", json_object: "JSON object", json_schema: "JSON by a schema" };
  const select = h(
    "select",
    {
      class: "input",
      id,
      "aria-describedby": `${id}-help ${id}-problem`,
      onchange: () => {
        schema.hidden = select.value !== "json_schema";
        takeFormat();
      },
    },
    Object.entries(kinds).map(([kind, label]) => h("option", { value: kind }, label)),
  );
  select.value = value?.type ?? "text";
  const takeFormat = () => {
    problem.textContent = "";
    if (select.value === "text") view.set("response_format", undefined);
    else if (select.value === "json_object") view.set("response_format", { type: "json_object" });
    else takeSchema(view, schema, problem);
  };
  return h("div", { class: "settings-more" }, select, schema);
}

function takeSchema(view, area, problem) {
  try {
    const schema = JSON.parse(area.value);
    view.set("response_format", { type: "json_schema", json_schema: { name: "answer", schema } });
  } catch (error) {
    problem.textContent = `Not JSON: ${error.message}`;
  }
}
