'use strict';
// Memory over events, drawn on a canvas: bands of blocks that can be zoomed and asked about.
// Everything an answer says reaches the page as text nodes or on the canvas, never as markup.
(() => {
  const LEFT = 62, RIGHT = 10, STRIP = 38, BOTTOM = 26, FONT = '12px "DejaVu Sans", Verdana, sans-serif';
  const LEAST_EVENTS = 8, LINE_FROM = 3, LARGEST = 10;
  const UNITS = [[2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']];

  // Three significant digits, as everywhere in memplan.
  function size(bytes) {
    for (const [factor, unit] of UNITS) {
      if (Math.abs(bytes) >= factor) {
        const value = bytes / factor;
        return `${value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))))} ${unit}`;
      }
    }
    return `${bytes} B`;
  }
  const count = (number) => number.toLocaleString('en-US');
  const words = (name) => name.replaceAll('_', ' ');
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // The facts behind one picture: bytes of each band after each event, and whose they are.
  class Facts {
    constructor(data) {
      Object.assign(this, data);
      this.rows = this.bands.map(() => new Float64Array(this.n));
      if (this.blocks) this.sumBlocks(); else this.bands.forEach((band, i) => this.rows[i].set(band.bytes));
      this.allocated = new Float64Array(this.n);
      this.rows.forEach((row, i) => {
        if (!this.bands[i].outside) row.forEach((bytes, e) => { this.allocated[e] += bytes; });
      });
      if (this.blocks) this.addHeld();
      this.top = new Float64Array(this.n);
      this.rows.forEach((row) => row.forEach((bytes, e) => { this.top[e] += bytes; }));
      this.peak = this.allocated.reduce((best, bytes, e, all) => (bytes > all[best] ? e : best), 0);
    }

    sumBlocks() {
      const { made, freed, bytes, label } = this.blocks;
      this.band = label.map((one) => this.labels[one][0]);
      const change = this.bands.map(() => new Float64Array(this.n + 1));
      made.forEach((start, i) => {
        change[this.band[i]][start] += bytes[i];
        change[this.band[i]][freed[i]] -= bytes[i];
      });
      change.forEach((row, b) => {
        let sum = 0;
        for (let e = 0; e < this.n; e++) this.rows[b][e] = (sum += row[e]);
      });
      // Blocks come sorted by band and begin: where each band's begin.
      this.firstOf = this.bands.map((_, b) => this.band.findIndex((one) => one === b));
    }

    // What the allocator holds beside blocks: cached, and outside of it the context.
    addHeld() {
      const cached = this.bands.findIndex((band) => band.name === 'cached');
      const context = this.bands.findIndex((band) => band.name === 'context');
      let at = 0, held = 0;
      for (let e = 0; e < this.n; e++) {
        while (at < this.reserved.length && this.reserved[at][0] <= e) held = this.reserved[at++][1];
        if (cached >= 0) this.rows[cached][e] = Math.max(0, held - this.allocated[e]);
        if (context >= 0) this.rows[context][e] = this.context;
      }
    }

    phaseAt(event) {
      let low = 0, high = this.phases.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.phases[middle][2] <= event) low = middle + 1; else high = middle;
      }
      return low - 1;
    }

    // The blocks alive after an event in the order they are stacked.
    aliveAt(event) {
      if (!this.blocks) return [];
      const { made, freed } = this.blocks, alive = [];
      for (let i = 0; i < made.length; i++) if (made[i] <= event && event < freed[i]) alive.push(i);
      return alive;
    }

    // What lies at a height of the stack after an event: a band, and its block where they are known.
    at(event, height) {
      let below = 0;
      for (let b = 0; b < this.bands.length; b++) {
        const here = this.rows[b][event];
        if (height < below + here) return { band: b, block: this.blockAt(event, b, height - below) };
        below += here;
      }
      return null;
    }

    blockAt(event, band, height) {
      if (!this.blocks || this.firstOf[band] === undefined || this.firstOf[band] < 0) return -1;
      const { made, freed, bytes } = this.blocks;
      let below = 0;
      for (let i = this.firstOf[band]; i < made.length && this.band[i] === band; i++) {
        if (made[i] > event || event >= freed[i]) continue;
        below += bytes[i];
        if (height < below) return i;
      }
      return -1;
    }
  }

  // One picture and its controls.
  class Picture {
    constructor(figure) {
      const source = figure.querySelector('script[type="application/json"]');
      this.facts = new Facts(JSON.parse(source.textContent));
      this.canvas = figure.querySelector('canvas');
      this.told = figure.querySelector('.told');
      this.canvas.tabIndex = 0;
      this.view = [0, this.facts.n];
      this.event = this.facts.peak;
      this.chosen = null;
      this.pointers = new Map();
      this.patterns = this.facts.bands.map((band) => this.pattern(band));
      this.listen(figure);
      this.resize();
      this.tell(this.event, this.facts.at(this.event, 0));
      figure.dataset.drawn = 'true';
    }

    pattern(band) {
      if (!band.hatch) return band.fill;
      const tile = document.createElement('canvas');
      tile.width = tile.height = 8;
      const pen = tile.getContext('2d');
      pen.fillStyle = band.fill;
      pen.fillRect(0, 0, 8, 8);
      pen.strokeStyle = pen.fillStyle = '#595959';
      pen.lineWidth = 0.7;
      if (band.hatch === 'lines') {
        pen.beginPath();
        for (const x of [-8, 0, 8]) { pen.moveTo(x, 8); pen.lineTo(x + 8, 0); }
        pen.stroke();
      } else {
        pen.fillRect(1, 1, 1, 1);
        pen.fillRect(5, 5, 1, 1);
      }
      return this.canvas.getContext('2d').createPattern(tile, 'repeat');
    }

    listen(figure) {
      const canvas = this.canvas;
      const act = {
        in: () => this.zoom(0.5), out: () => this.zoom(2), whole: () => this.show(0, this.facts.n),
        peak: () => this.toPeak(), left: () => this.pan(-0.25), right: () => this.pan(0.25),
      };
      figure.querySelectorAll('button').forEach((button) => {
        button.addEventListener('click', () => act[button.dataset.act]());
      });
      canvas.addEventListener('keydown', (event) => this.key(event));
      canvas.addEventListener('pointerdown', (event) => this.down(event));
      canvas.addEventListener('pointermove', (event) => this.move(event));
      canvas.addEventListener('pointerup', (event) => this.up(event));
      canvas.addEventListener('pointercancel', (event) => { this.pointers.delete(event.pointerId); this.drag = null; });
      canvas.addEventListener('dblclick', (event) => this.zoom(0.25, this.eventAt(event.offsetX)));
      canvas.addEventListener('wheel', (event) => {
        // Without the key or the focus a page must scroll on over the picture.
        if (!event.ctrlKey && document.activeElement !== canvas) return;
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? 0.8 : 1.25, this.eventAt(event.offsetX));
      }, { passive: false });
      new ResizeObserver(() => this.resize()).observe(canvas);
    }

    // -- where things are

    resize() {
      const scale = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
      this.width = Math.max(120, Math.round(box.width));
      this.height = Math.max(120, Math.round(box.height));
      this.canvas.width = this.width * scale;
      this.canvas.height = this.height * scale;
      this.pen = this.canvas.getContext('2d');
      this.pen.setTransform(scale, 0, 0, scale, 0, 0);
      this.draw();
    }

    get columns() { return this.width - LEFT - RIGHT; }
    eventAt(x) {
      const [from, to] = this.view;
      return clamp(from + ((x - LEFT) / this.columns) * (to - from), 0, this.facts.n - 1);
    }
    xOf(event) {
      const [from, to] = this.view;
      return LEFT + ((event - from) / (to - from)) * this.columns;
    }
    yOf(bytes) {
      const room = this.height - STRIP - BOTTOM;
      return STRIP + room * (1 - bytes / this.most);
    }
    bytesAt(y) {
      const room = this.height - STRIP - BOTTOM;
      return (1 - (y - STRIP) / room) * this.most;
    }

    // -- what is in view

    show(from, to) {
      const n = this.facts.n, width = clamp(to - from, Math.min(LEAST_EVENTS, n), n);
      const start = clamp((from + to - width) / 2, 0, n - width);
      this.view = [start, start + width];
      this.draw();
    }
    zoom(factor, around = this.event) {
      const [from, to] = this.view;
      const fixed = around >= from && around < to ? around : (from + to) / 2;
      this.show(fixed - (fixed - from) * factor, fixed + (to - fixed) * factor);
    }
    pan(share) {
      const [from, to] = this.view, step = (to - from) * share;
      const moved = clamp(step, -from, this.facts.n - to);
      this.show(from + moved, to + moved);
    }
    toPeak() {
      const width = Math.min(this.facts.n, 400);
      this.event = this.facts.peak;
      this.show(this.event - width / 2, this.event + width / 2);
      this.tell(this.event, this.facts.at(this.event, 0));
    }

    // -- hands and keys

    down(event) {
      this.canvas.focus({ preventScroll: true });
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event.offsetX);
      this.drag = { from: event.offsetX, view: [...this.view], touch: event.pointerType === 'touch' };
      this.pinch = null;
    }
    move(event) {
      if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, event.offsetX);
      if (this.pointers.size === 2) return this.pinched();
      if (this.drag && this.drag.touch) {
        const [from, to] = this.drag.view;
        const moved = ((this.drag.from - event.offsetX) / this.columns) * (to - from);
        const step = clamp(moved, -from, this.facts.n - to);
        return this.show(from + step, to + step);
      }
      if (this.drag) { this.drag.to = event.offsetX; return this.draw(); }
      return this.point(event.offsetX, event.offsetY);
    }
    up(event) {
      this.pointers.delete(event.pointerId);
      const drag = this.drag;
      this.drag = null;
      if (!drag || this.pinch) { if (!this.pointers.size) this.pinch = null; return; }
      if (Math.abs(event.offsetX - drag.from) < 5) { this.point(event.offsetX, event.offsetY); return; }
      if (drag.touch) return;
      const ends = [this.eventAt(drag.from), this.eventAt(event.offsetX)].sort((a, b) => a - b);
      this.show(ends[0], ends[1]);
    }
    pinched() {
      const [one, other] = [...this.pointers.values()];
      const apart = Math.max(10, Math.abs(one - other)), middle = (one + other) / 2;
      if (!this.pinch) { this.pinch = { apart, view: [...this.view], at: this.eventAt(middle) }; return; }
      const factor = this.pinch.apart / apart, [from, to] = this.pinch.view, at = this.pinch.at;
      this.show(at - (at - from) * factor, at + (to - at) * factor);
    }
    key(event) {
      const far = event.shiftKey ? 10 : 1, step = Math.max(1, (this.view[1] - this.view[0]) / this.columns) * far;
      const keys = {
        ArrowLeft: () => this.moveTo(this.event - step), ArrowRight: () => this.moveTo(this.event + step),
        ArrowUp: () => this.climb(1), ArrowDown: () => this.climb(-1),
        '+': () => this.zoom(0.5), '=': () => this.zoom(0.5), '-': () => this.zoom(2),
        '0': () => this.show(0, this.facts.n), Home: () => this.moveTo(0), End: () => this.moveTo(this.facts.n - 1),
        p: () => this.toPeak(),
      };
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    }
    moveTo(place) {
      this.event = Math.round(clamp(place, 0, this.facts.n - 1));
      const [from, to] = this.view;
      if (this.event < from || this.event >= to) this.show(this.event - (to - from) / 2, this.event + (to - from) / 2);
      this.tell(this.event, this.facts.at(this.event, this.heightOf(this.chosen)));
    }
    // The middle of what is chosen in the stack at the cursor, so that a key moves up or down from it.
    heightOf(chosen, whole = 0.5) {
      if (!chosen) return 0;
      let below = 0;
      for (let b = 0; b < chosen.band; b++) below += this.facts.rows[b][this.event];
      if (chosen.block < 0) return below + whole * this.facts.rows[chosen.band][this.event];
      const { made, freed, bytes } = this.facts.blocks;
      for (let i = this.facts.firstOf[chosen.band]; i < chosen.block; i++) {
        if (made[i] <= this.event && this.event < freed[i]) below += bytes[i];
      }
      return below + whole * bytes[chosen.block];
    }
    climb(direction) {
      const height = direction > 0 ? this.heightOf(this.chosen, 1) : this.heightOf(this.chosen, 0) - 1;
      this.tell(this.event, this.facts.at(this.event, Math.max(0, height)) || this.chosen);
    }
    point(x, y) {
      if (x < LEFT || x > LEFT + this.columns) return;
      const column = Math.floor(clamp(x - LEFT, 0, this.columns - 1));
      this.event = this.picks[column];
      this.tell(this.event, this.facts.at(this.event, this.bytesAt(y)));
    }

    // -- words

    tell(event, chosen) {
      this.chosen = chosen;
      const facts = this.facts, lines = [];
      const phase = facts.phaseAt(event);
      const where = phase < 0 ? '' : `: ${facts.phases[phase].slice(0, 2).filter(Boolean).map(words).join(', ')}`;
      const held = [`allocated ${size(facts.allocated[event])}`, `in all ${size(facts.top[event])}`];
      lines.push(`${facts.unit} ${count(event + 1)} of ${count(facts.n)}${where}; ${held.join(', ')} (${facts.origin})`);
      if (chosen) lines.push(...this.about(event, chosen));
      const largest = this.largest(event);
      if (largest) lines.push(largest);
      this.told.replaceChildren(...lines.map((line) => {
        const row = document.createElement('div');
        row.textContent = line;
        return row;
      }));
      this.draw();
    }
    about(event, { band, block }) {
      const facts = this.facts, name = words(facts.bands[band].name);
      if (block < 0) return [`${name}: ${size(facts.rows[band][event])}`];
      const [, tensor, module, operator, line] = facts.labels[facts.blocks.label[block]];
      const ends = facts.blocks.freed[block];
      return [
        `${size(facts.blocks.bytes[block])} ${name}${tensor ? `: ${tensor}` : ''}`,
        [module && `module ${module}`, operator && `operator ${operator}`, line && `line ${line}`].filter(Boolean).join('; '),
        `from event ${count(facts.blocks.made[block] + 1)} ${ends < facts.n ? `to ${count(ends)}` : 'to the end'}`,
      ].filter(Boolean);
    }
    largest(event) {
      const { blocks, labels } = this.facts;
      const alive = this.facts.aliveAt(event);
      if (!alive.length) return '';
      alive.sort((a, b) => blocks.bytes[b] - blocks.bytes[a]);
      const shown = alive.slice(0, LARGEST).map((i) => {
        const [, tensor, module, operator, line] = labels[blocks.label[i]];
        return `${size(blocks.bytes[i])} ${module || line || tensor || operator}`.trim();
      });
      return `Largest of ${count(alive.length)} blocks here: ${shown.join('; ')}`;
    }

    // -- drawing

    draw() {
      if (!this.pen) return;
      const { pen, facts } = this;
      this.pick();
      let most = 0;
      for (const event of this.picks) most = Math.max(most, facts.top[event]);
      if (facts.capacity && facts.capacity < 1.7 * most) most = Math.max(most, facts.capacity);
      this.most = Math.max(1, most * 1.05);
      pen.clearRect(0, 0, this.width, this.height);
      pen.font = FONT;
      this.drawAxis();
      pen.save();
      pen.beginPath();
      pen.rect(LEFT, 0, this.columns, this.height - BOTTOM);
      pen.clip();
      this.drawBands();
      this.drawBlocks();
      this.drawCapacity();
      this.drawCursor();
      pen.restore();
      this.drawPhases();
    }

    // One event a column of pixels: of those that fall into it the fullest.
    pick() {
      const [from, to] = this.view, columns = this.columns, { top, n } = this.facts;
      this.picks = new Int32Array(columns);
      for (let c = 0; c < columns; c++) {
        let best = Math.min(n - 1, Math.floor(from + (c * (to - from)) / columns));
        const end = Math.min(n, Math.floor(from + ((c + 1) * (to - from)) / columns));
        for (let e = best + 1; e < end; e++) if (top[e] > top[best]) best = e;
        this.picks[c] = best;
      }
    }

    drawBands() {
      const { pen, facts, picks, columns } = this;
      const below = new Float64Array(columns);
      this.bases = [];
      facts.bands.forEach((band, b) => {
        this.bases.push(below.slice());
        const row = facts.rows[b];
        pen.fillStyle = this.patterns[b];
        pen.beginPath();
        for (let c = 0; c < columns; c++) {
          const bytes = row[picks[c]];
          if (bytes) {
            const y = this.yOf(below[c] + bytes);
            pen.rect(LEFT + c, y, 1.02, this.yOf(below[c]) - y);
            below[c] += bytes;
          }
        }
        pen.fill();
        if (band.name === 'context') this.drawEdge(below, '#4d4d4d');
      });
    }
    drawEdge(heights, colour) {
      const { pen } = this;
      pen.strokeStyle = colour;
      pen.lineWidth = 1;
      pen.beginPath();
      heights.forEach((height, c) => pen.lineTo(LEFT + c, this.yOf(height)));
      pen.stroke();
    }

    // Lines between blocks that are tall enough to be told apart, and a frame around the chosen one.
    drawBlocks() {
      const { facts, picks, pen, columns } = this;
      if (!facts.blocks) return;
      const { made, freed, bytes } = facts.blocks, least = (LINE_FROM * this.most) / (this.height - STRIP - BOTTOM);
      const chosen = this.chosen ? this.chosen.block : -1, frame = [];
      const first = picks[0], last = picks[columns - 1];
      pen.strokeStyle = '#fff';
      pen.lineWidth = 0.6;
      pen.beginPath();
      for (let i = 0; i < made.length; i++) {
        if (freed[i] <= first || made[i] > last) continue;
        const offset = this.bases[facts.band[i]], isTall = bytes[i] >= least;
        let c = this.columnOf(made[i]), drawing = false;
        for (; c < columns && picks[c] < freed[i]; c++) {
          if (picks[c] < made[i]) continue;
          const low = offset[c];
          offset[c] = low + bytes[i];
          if (i === chosen) frame.push([c, low, offset[c]]);
          if (!isTall) continue;
          const y = this.yOf(offset[c]);
          if (!drawing) { pen.moveTo(LEFT + c, this.yOf(low)); drawing = true; }
          pen.lineTo(LEFT + c, y);
          pen.lineTo(LEFT + c + 1, y);
        }
      }
      pen.stroke();
      this.drawFrame(frame);
    }
    // The first column whose event is not before a given one.
    columnOf(event) {
      let low = 0, high = this.columns;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.picks[middle] < event) low = middle + 1; else high = middle;
      }
      return low;
    }
    drawFrame(frame) {
      if (!frame.length) return;
      const { pen } = this;
      pen.beginPath();
      frame.forEach(([c, , high]) => { pen.lineTo(LEFT + c, this.yOf(high)); pen.lineTo(LEFT + c + 1, this.yOf(high)); });
      frame.reverse().forEach(([c, low]) => { pen.lineTo(LEFT + c + 1, this.yOf(low)); pen.lineTo(LEFT + c, this.yOf(low)); });
      pen.closePath();
      for (const [colour, width] of [['#fff', 4], ['#000', 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width;
        pen.stroke();
      }
    }

    drawCapacity() {
      const { pen, facts } = this;
      if (!facts.capacity || facts.capacity > this.most) return;
      const y = this.yOf(facts.capacity);
      pen.strokeStyle = pen.fillStyle = '#000';
      pen.lineWidth = 1.2;
      pen.setLineDash([6, 4]);
      pen.beginPath();
      pen.moveTo(LEFT, y);
      pen.lineTo(this.width, y);
      pen.stroke();
      pen.setLineDash([]);
      pen.textAlign = 'right';
      pen.fillText(`capacity ${size(facts.capacity)}`, this.width - RIGHT - 4, y - 5);
    }
    drawCursor() {
      const { pen } = this;
      if (this.drag && this.drag.to !== undefined) {
        pen.fillStyle = 'rgba(0, 0, 0, 0.15)';
        pen.fillRect(Math.min(this.drag.from, this.drag.to), STRIP, Math.abs(this.drag.to - this.drag.from), this.height);
      }
      const [from, to] = this.view;
      if (this.event < from || this.event >= to) return;
      pen.strokeStyle = '#000';
      pen.lineWidth = 1;
      pen.setLineDash([2, 3]);
      pen.beginPath();
      const x = this.xOf(this.event) + 0.5;
      pen.moveTo(x, STRIP);
      pen.lineTo(x, this.height);
      pen.stroke();
      pen.setLineDash([]);
    }

    drawAxis() {
      const { pen } = this, [factor, unit] = UNITS.find(([one]) => this.most >= one) || [1, 'B'];
      const rough = this.most / factor / 5, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
      pen.fillStyle = '#595959';
      pen.strokeStyle = '#e5e5e5';
      pen.lineWidth = 1;
      pen.textAlign = 'right';
      pen.textBaseline = 'middle';
      const digits = Math.max(0, -Math.floor(Math.log10(step)));
      for (let tick = 0; tick * factor <= this.most; tick += step) {
        const y = this.yOf(tick * factor);
        pen.beginPath();
        pen.moveTo(LEFT, y);
        pen.lineTo(this.width - RIGHT, y);
        pen.stroke();
        pen.fillText(`${tick.toFixed(digits)} ${unit}`, LEFT - 6, y);
      }
      pen.textBaseline = 'alphabetic';
      const y = this.height - 8, [from, to] = this.view;
      pen.textAlign = 'left';
      pen.fillText(`${this.facts.unit} ${count(Math.floor(from) + 1)}`, LEFT, y);
      pen.textAlign = 'right';
      pen.fillText(count(Math.ceil(to)), this.width - RIGHT, y);
    }

    drawPhases() {
      const { facts } = this;
      const spans = facts.phases.map(([period, phase, start], i) => {
        return [period, phase, start, i + 1 < facts.phases.length ? facts.phases[i + 1][2] : facts.n];
      });
      spans.forEach(([, phase, start, end], i) => this.drawBox(words(phase), start, end, 18, i));
      let begin = 0, shade = 0;
      spans.forEach((span, i) => {
        if (i + 1 < spans.length && spans[i + 1][0] === span[0]) return;
        this.drawBox(words(span[0]), spans[begin][2], span[3], 0, shade++);
        begin = i + 1;
      });
    }
    drawBox(name, start, end, y, number) {
      const [from, to] = this.view, { pen } = this;
      if (!name || end <= from || start >= to) return;
      const left = Math.max(LEFT, this.xOf(start)), right = Math.min(LEFT + this.columns, this.xOf(end));
      pen.fillStyle = number % 2 ? '#fff' : '#f2f2f2';
      pen.strokeStyle = '#bfbfbf';
      pen.lineWidth = 0.5;
      pen.fillRect(left, y, right - left, 17);
      pen.strokeRect(left, y, right - left, 17);
      pen.fillStyle = '#1a1a1a';
      pen.textAlign = 'center';
      if (pen.measureText(name).width + 6 <= right - left) pen.fillText(name, (left + right) / 2, y + 13);
    }
  }

  const pictures = [...document.querySelectorAll('figure.timeline')].map((figure) => new Picture(figure));
  document.documentElement.dataset.drawnMs = String(Math.round(performance.now()));
  document.documentElement.dataset.pictures = String(pictures.length);
})();
