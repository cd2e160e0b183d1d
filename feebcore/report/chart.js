// Draws the panels of a figure (JSON of feebcore/report/chart.py) as SVG that fits its column: hover, zoom by dragging, legend that hides series.
"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const svg = (name, attributes = {}, parent = null) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.appendChild(node);
    return node;
  };
  const element = (name, className, parent, text = "") => {
    const node = document.createElement(name);
    node.className = className;
    node.textContent = text;
    parent.appendChild(node);
    return node;
  };
  const color = ([light, dark]) => (light === dark ? light : `light-dark(${light}, ${dark})`);
  const finite = (v) => v !== null && Number.isFinite(v);

  function text(value) {
    const size = Math.abs(value);
    if (size >= 1e4) {
      const [unit, prefix] = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([u]) => size >= u);
      return `${+(value / unit).toPrecision(4)}${prefix}`;
    }
    return size !== 0 && size < 1e-3 ? value.toExponential(1).replace("e-", "e−") : `${+value.toPrecision(5)}`.replace("-", "−");
  }

  function ticks([low, high], log, count) {
    if (log) {
      const found = [];
      const factors = high / low > 300 ? [1] : [1, 2, 5];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) for (const f of factors) found.push(f * 10 ** e);
      const inside = found.filter((t) => t >= low * 0.999 && t <= high * 1.001);
      if (inside.length > 1) return inside.filter((_, i) => i % Math.ceil(inside.length / (count + 1)) === 0);
    }
    const rough = (high - low) / Math.max(2, count);
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((f) => f * unit >= rough * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found;
  }

  function panel(data, parent, alone) {
    const box = element("div", "chart", parent);
    if (data.title) element("div", "chart-title", box, data.title);
    const hidden = new Set();
    const named = data.series.filter((s) => s.name);
    const names = new Set(named.map((s) => s.name));
    if (names.size > 1 || (names.size && ![data.title, data.ylabel].includes(named[0].name))) {
      const legend = element("div", "chart-legend", box);
      for (const name of names) {
        const item = element("button", "", legend);
        item.type = "button";
        element("i", "", item).style.background = color(named.find((s) => s.name === name).color);
        item.append(name);
        item.onclick = () => {
          hidden.has(name) ? hidden.delete(name) : hidden.add(name);
          item.classList.toggle("off", hidden.has(name));
          draw();
        };
      }
    }
    const plot = element("div", "chart-plot", box);
    const tip = element("div", "chart-tip", plot);
    tip.hidden = true;
    const isLog = { x: data.xscale === "log", y: data.yscale === "log" };
    let range = { x: data.xlim, y: data.ylim };
    let place = null; // how data become pixels, of the last drawing

    function draw() {
      const width = plot.clientWidth;
      if (!width) return;
      const height = data.height ? Math.max(150, data.height) : Math.max(190, Math.min(alone ? 420 : 270, width * 0.62));
      plot.querySelector("svg")?.remove();
      const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": data.title || data.ylabel });
      plot.prepend(root);
      const yTicks = data.yticks || ticks(range.y, isLog.y, Math.max(3, Math.floor(height / 45))).map((t) => [t, text(t)]);
      const left = Math.max(...yTicks.map(([, label]) => label.length), 2) * 6.6 + (data.ylabel ? 26 : 12);
      const area = { left, right: width - 12, top: 8, bottom: height - (data.xlabel ? 40 : 24) };
      const scale = (axis, from, to) => {
        const f = isLog[axis] ? Math.log : (v) => v;
        const [a, b] = range[axis].map(f);
        return Object.assign((v) => from + ((f(v) - a) / (b - a || 1)) * (to - from), {
          back: (p) => (isLog[axis] ? Math.exp(a + ((p - from) / (to - from)) * (b - a)) : a + ((p - from) / (to - from)) * (b - a)),
        });
      };
      const x = scale("x", area.left, area.right);
      const y = scale("y", data.yflip ? area.top : area.bottom, data.yflip ? area.bottom : area.top);
      place = { x, y, area };
      const clip = `clip${Math.random().toString(36).slice(2)}`;
      svg("rect", { x: area.left - 1, y: area.top - 5, width: area.right - area.left + 8, height: area.bottom - area.top + 10 }, svg("clipPath", { id: clip }, root));
      for (const [t, label] of yTicks) {
        if (y(t) < area.top - 1 || y(t) > area.bottom + 1) continue;
        if (!data.yticks) svg("line", { x1: area.left, x2: area.right, y1: y(t), y2: y(t), class: "grid" }, root);
        svg("text", { x: area.left - 6, y: y(t) + 4, "text-anchor": "end", class: data.yticks ? "strong" : "" }, root).textContent = label;
      }
      let lastEnd = -Infinity;
      for (const [t, label] of data.xticks || ticks(range.x, isLog.x, Math.max(2, Math.floor(width / 85))).map((t) => [t, text(t)])) {
        const middle = x(t), half = label.length * 3.3;
        if (middle < area.left - 1 || middle > area.right + 1) continue;
        svg("line", { x1: middle, x2: middle, y1: area.top, y2: area.bottom, class: "grid" }, root);
        if (middle - half < lastEnd + 8) continue;
        lastEnd = middle + half;
        svg("text", { x: Math.min(middle, width - half - 1), y: area.bottom + 15, "text-anchor": "middle" }, root).textContent = label;
      }
      if (data.xlabel) svg("text", { x: (area.left + area.right) / 2, y: height - 6, "text-anchor": "middle" }, root).textContent = data.xlabel;
      if (data.ylabel) {
        const middle = (area.top + area.bottom) / 2;
        svg("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, root).textContent = data.ylabel;
      }
      const group = svg("g", { "clip-path": `url(#${clip})` }, root);
      for (const s of data.series) if (!hidden.has(s.name)) shape(s, group, x, y, area);
      for (const t of data.texts) label(t, root, x, y, area);
      svg("g", { class: "cursor" }, root);
    }

    function shape(s, group, x, y, area) {
      const style = `${s.type === "line" || s.type === "rule" ? "stroke" : "fill"}:${color(s.color)};opacity:${s.alpha ?? 1};stroke-width:${s.width ?? 1.5};fill-opacity:1`;
      if (s.type === "rect") {
        const xs = [x(s.x), x(s.x + s.w)], ys = [y(s.y), y(s.y + s.h)];
        if (s.full === "y") ys.splice(0, 2, area.top, area.bottom);
        svg("rect", { x: Math.min(...xs), y: Math.min(...ys), width: Math.abs(xs[1] - xs[0]), height: Math.abs(ys[1] - ys[0]), style, rx: 1 }, group);
      } else if (s.type === "area") {
        svg("path", { d: `M${s.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("L")}Z`, style }, group);
      } else if (s.type === "rule") {
        const at = s.axis === "x" ? { x1: x(s.at), x2: x(s.at), y1: area.top, y2: area.bottom } : { x1: area.left, x2: area.right, y1: y(s.at), y2: y(s.at) };
        svg("line", { ...at, style, "stroke-dasharray": s.dash || "none" }, group);
      } else {
        const points = s.x.map((v, i) => (finite(v) && finite(s.y[i]) && (!isLog.y || s.y[i] > 0) && (!isLog.x || v > 0) ? [x(v), y(s.y[i])] : null));
        if (s.dash !== "none") {
          let path = "", pen = false;
          for (const p of points) {
            path += p ? `${pen ? "L" : "M"}${p[0].toFixed(1)},${p[1].toFixed(1)}` : "";
            pen = p !== null;
          }
          svg("path", { d: path, style: `${style};fill:none`, "stroke-dasharray": s.dash || "none", "stroke-linejoin": "round" }, group);
        }
        if (s.marker) for (const p of points) if (p) marker(s, p, group);
      }
    }

    function marker(s, [x, y], group) {
      const r = (s.size ?? 4) * 0.62, style = `fill:${s.hollow ? "var(--panel)" : color(s.color)};stroke:${color(s.color)};stroke-width:${s.hollow ? 1.6 : 0};opacity:${s.alpha ?? 1}`;
      if (s.marker === "|") svg("line", { x1: x, x2: x, y1: y - r - 2, y2: y + r + 2, style: `stroke:${color(s.color)};stroke-width:1.4` }, group);
      else if (s.marker === "_") svg("line", { x1: x - r - 2, x2: x + r + 2, y1: y, y2: y, style: `stroke:${color(s.color)};stroke-width:1.4` }, group);
      else if (s.marker === "D") svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, transform: `rotate(45 ${x} ${y})`, style }, group);
      else if (s.marker === "*") {
        const corner = (k) => `${x + (k % 2 ? 0.42 : 1.15) * r * Math.sin((k * Math.PI) / 5)},${y - (k % 2 ? 0.42 : 1.15) * r * Math.cos((k * Math.PI) / 5)}`;
        svg("polygon", { points: [...Array(10).keys()].map(corner).join(" "), style }, group);
      } else svg("circle", { cx: x, cy: y, r, style }, group);
    }

    function label(t, root, x, y, area) {
      const at = t.fraction ? [area.left + t.x * (area.right - area.left), area.bottom - t.y * (area.bottom - area.top)] : [x(t.x) + t.dx, y(t.y) - t.dy];
      if (!t.fraction && (at[1] < area.top - 12 || at[1] > area.bottom + 12 || at[0] < area.left - 12)) return;
      const node = svg("text", { x: at[0], y: at[1] + (t.fraction ? (t.y > 0.5 ? 10 : 0) : 4), "text-anchor": t.anchor, style: `fill:${color(t.color)};font-weight:${t.bold ? 650 : 400}` }, root);
      node.textContent = t.text;
    }

    const nearest = (xs, value) => {
      let best = -1;
      xs.forEach((v, i) => { if (finite(v) && (best < 0 || Math.abs(v - value) < Math.abs(xs[best] - value))) best = i; });
      return best;
    };

    function hover(event) {
      const cursor = plot.querySelector(".cursor");
      const at = event.clientX - plot.getBoundingClientRect().left;
      cursor.replaceChildren();
      const lines = data.series.filter((s) => s.type === "line" && s.name && !hidden.has(s.name) && s.hover !== false);
      if (!lines.length || at < place.area.left - 5 || at > place.area.right + 5) return void (tip.hidden = true);
      const value = place.x.back(at);
      const hits = lines.map((s) => [s, nearest(s.x, value)]).filter(([s, i]) => i >= 0 && finite(s.y[i]));
      if (!hits.length) return void (tip.hidden = true);
      const [first, index] = hits.reduce((a, b) => (Math.abs(a[0].x[a[1]] - value) <= Math.abs(b[0].x[b[1]] - value) ? a : b));
      const line = place.x(first.x[index]);
      svg("line", { x1: line, x2: line, y1: place.area.top, y2: place.area.bottom, class: "hair" }, cursor);
      tip.replaceChildren();
      element("b", "", tip, `${data.xlabel || "x"} ${text(first.x[index])}`);
      for (const [s, i] of hits) {
        if (Math.abs(place.x(s.x[i]) - line) > 24) continue;
        const row = element("div", "", tip);
        element("i", "", row).style.background = color(s.color);
        row.append(`${s.name} ${text(s.y[i])}${s.x[i] === first.x[index] ? "" : ` at ${text(s.x[i])}`}`);
        svg("circle", { cx: place.x(s.x[i]), cy: place.y(s.y[i]), r: 3.2, style: `fill:${color(s.color)}` }, cursor);
      }
      tip.hidden = false;
      tip.style.left = `${Math.max(0, line + 12 + tip.offsetWidth > plot.clientWidth ? line - tip.offsetWidth - 12 : line + 12)}px`;
      tip.style.top = `${place.area.top + 4}px`;
    }

    function zoom(low, high) {
      range = { x: [low, high], y: data.ylim };
      const seen = data.series.filter((s) => s.type === "line" && !hidden.has(s.name)).flatMap((s) => s.y.filter((v, i) => finite(v) && s.x[i] >= low && s.x[i] <= high && (!isLog.y || v > 0)));
      if (seen.length > 1 && !data.yticks) {
        const [a, b] = [Math.min(...seen), Math.max(...seen)], pad = 0.06 * (b - a) || 0.05 * Math.abs(b) || 1;
        range.y = isLog.y ? [a / 1.1, b * 1.1] : [a - pad, b + pad];
      }
      draw();
    }

    let start = null;
    plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) start = event.clientX - plot.getBoundingClientRect().left;
    });
    plot.addEventListener("pointermove", (event) => {
      hover(event);
      if (start === null) return;
      const at = event.clientX - plot.getBoundingClientRect().left;
      svg("rect", { x: Math.min(start, at), y: place.area.top, width: Math.abs(at - start), height: place.area.bottom - place.area.top, class: "brush" }, plot.querySelector(".cursor"));
    });
    addEventListener("pointerup", (event) => {
      if (start === null) return;
      const ends = [start, event.clientX - plot.getBoundingClientRect().left].map((p) => Math.min(place.area.right, Math.max(place.area.left, p))).sort((a, b) => a - b);
      start = null;
      if (ends[1] - ends[0] > 8) zoom(place.x.back(ends[0]), place.x.back(ends[1]));
    });
    plot.addEventListener("pointerleave", () => {
      tip.hidden = true;
      plot.querySelector(".cursor")?.replaceChildren();
    });
    plot.addEventListener("dblclick", () => {
      range = { x: data.xlim, y: data.ylim };
      draw();
    });
    new ResizeObserver(() => requestAnimationFrame(draw)).observe(plot); // drawing at once would be another change of size
    return draw;
  }

  for (const source of document.querySelectorAll("script.chart-data")) {
    const charts = element("div", "charts", source.parentElement);
    source.after(charts);
    const panels = JSON.parse(source.textContent);
    const drawings = panels.map((data) => {
      const draw = panel(data, charts, panels.length === 1);
      charts.lastChild.style.flex = `${100 * (data.weight ?? 1)} 1 ${panels.length === 4 ? 380 : panels.length > 2 ? 250 : 320}px`;
      return draw;
    });
    for (const draw of drawings) draw(); // once all have their width
  }
})();
