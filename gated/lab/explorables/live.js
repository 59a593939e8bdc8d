// Beneath a figure that has a model behind it: the kernel's answer beside the figure's own numbers of the same name.
// Read by widgets alone, in place of the figure's export; a page without a kernel holds none of this. It stands in a
// function of its own, since its names share a module with those of every figure.
export default { render: (() => {
  const written = (value) =>
    Array.isArray(value) ? value.map(written).join(", ")
      : typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(4)) : String(value);

  function answers({ model, el }) {
    const panel = element(el, "section", { class: "gx-answer", "aria-label": "Answer of the model in the kernel" });
    const show = () => {
      const { asked, found, error } = model.get("answer");
      const own = JSON.parse(el.dataset.values), same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
      // Until the kernel has answered for what is set now, its last answer is shown as such.
      panel.setAttribute("aria-busy", String(!Object.keys(asked).every((key) => same(asked[key], model.get(key)))));
      panel.dataset.answer = JSON.stringify(found);
      panel.textContent = "";
      if (error) return void element(panel, "p", { role: "alert" }, error);
      const table = element(panel, "table"), shared = Object.keys(found).some((name) => name in own);
      const head = element(element(table, "thead"), "tr"), body = element(table, "tbody");
      for (const text of ["", "the model, in the kernel", ...(shared ? ["the figure"] : [])]) element(head, "th", {}, text);
      for (const name in found) {
        const line = element(body, "tr");
        element(line, "th", { scope: "row" }, name);
        element(line, "td", {}, written(found[name]));
        if (shared) element(line, "td", {}, name in own ? written(own[name]) : "");
      }
    };
    const drawn = new MutationObserver(show); // the figure publishes its numbers after each change
    drawn.observe(el, { attributeFilter: ["data-values"] });
    model.on("change:answer", show);
    show();
    return () => { drawn.disconnect(); model.off("change:answer", show); };
  }

  return (context) => {
    const stops = [render(context), answers(context)];
    return () => stops.forEach((stop) => stop?.());
  };
})() };
