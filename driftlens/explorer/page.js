// All numbers lie in the page.
const data = JSON.parse(document.getElementById("data").textContent);
explorer(document, data.setup, data.choice, (record, prompt, gamma, window) => ({
  ...data.unedited[record][prompt],
  ...data.edited[record][gamma][prompt],
  grid: data.grids[record][gamma][prompt][window],
}));
