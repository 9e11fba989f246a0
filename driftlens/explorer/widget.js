// Python computes the numbers of a choice when it is made. The shadow root keeps ids and styles out of the notebook.
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function render({ model, el }) {
  const root = el.attachShadow({ mode: "open" });
  root.innerHTML = `<style>${style}</style>${markup}`;
  el.dataset.lmSuppressShortcuts = "true"; // arrow keys move the chosen cell, not JupyterLab's
  const ask = (...wanted) => new Promise((resolve) => {
    const look = () => {
      const shown = model.get("shown");
      if (!same(shown.choice, wanted)) return;
      model.off("change:shown", look);
      resolve(shown);
    };
    model.on("change:shown", look);
    look();
  });
  let own = model.get("choice");
  const publish = (choice) => {
    if (same(choice, own)) return;
    own = choice;
    model.set("choice", choice);
    model.save_changes();
  };
  const view = explorer(root, model.get("setup"), model.get("choice"), ask, publish);
  const follow = () => {
    if (same(model.get("choice"), own)) return;
    own = model.get("choice");
    view.choose(own);
  };
  model.on("change:choice", follow);
  return () => model.off("change:choice", follow);
}

export default { render };
