// Runs before the first paint: the chosen theme, if one was chosen, else the system's.
(() => {
  try {
    const theme = localStorage.getItem("airi-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch { /* storage may be switched off; then the system's theme holds */ }
})();
