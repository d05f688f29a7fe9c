// The model thinking about one puzzle: its prediction after every outer step, and the controls that play them.
"use strict";

/**
 * One example's predictions, step by step (steps count from 0 here, from 1 on the page).
 *
 * `wrongCells[t]`; `q[t]`, q_halt - q_continue, or q_halt where there is no q_continue (`qName` tells which), null
 * without Q values; `halted[t]`, whether the model's own rule would have halted it there, null if that isn't stored;
 * `halt`, the first such step, null if there is none.
 */
class Film {
  /** Read the film of the example in row `row` of the predictions; `labels` and `isScored` tell wrong cells. */
  static async read({ arrays, steps, seqLen }, row, labels, isScored) {
    const keys = ["step_preds", "step_q_halt_logits", "step_q_continue_logits", "step_halted"];
    const [tokens, qHalt, qContinue, halted = null] = await Promise.all(
      keys.map((key) => arrays[key]?.rows(row, row + 1)),
    );
    const film = Object.assign(new Film(), { allTokens: tokens, steps, seqLen, halted });
    film.q = qHalt ? Array.from(qHalt, (value, t) => value - (qContinue?.[t] ?? 0)) : null;
    film.qName = qContinue ? "q_halt − q_continue" : "q_halt";
    const halt = halted?.findIndex(Boolean) ?? -1;
    film.halt = halt < 0 ? null : halt;
    film.wrong = Array.from({ length: steps }, (_, t) => wrongCells(film.tokens(t), labels, isScored));
    film.wrongCells = film.wrong.map(count);
    film.hasLabel = labels.some(isScored);
    return film;
  }

  tokens(step) {
    return this.allTokens.subarray(step * this.seqLen, (step + 1) * this.seqLen);
  }

  /** Which cells differ from the step before; none at the first. */
  changed(step) {
    const before = this.tokens(Math.max(0, step - 1));
    return Uint8Array.from(this.tokens(step), (token, i) => token !== before[i]);
  }

  describe(step) {
    const wrong = this.wrongCells[step];
    const parts = [`Step ${step + 1} of ${this.steps}`];
    if (this.hasLabel) parts.push(wrong ? `${wrong} wrong cell${wrong > 1 ? "s" : ""}` : "all right");
    if (step) parts.push(`${count(this.changed(step))} changed`);
    if (this.q) parts.push(`${this.qName} ${signed(this.q[step])}`);
    return parts.join(" · ");
  }

  /** When the model would have halted, for the film as a whole; empty if that isn't known. */
  describeHalt() {
    if (!this.halted) return "";
    return this.halt === null ? `would not halt within ${this.steps} steps` : `would halt after step ${this.halt + 1}`;
  }
}

/** By cell, 1 where a scored label isn't met. */
function wrongCells(tokens, labels, isScored) {
  return Uint8Array.from(labels, (label, i) => isScored(label) && tokens[i] !== label);
}

const count = (flags) => flags.reduce((sum, flag) => sum + flag, 0);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** Steps through a film: `step`, `playing`; calls `change(flash)` whenever what is to be seen changes. */
class Player {
  constructor(change) {
    Object.assign(this, {
      change,
      film: null,
      step: 0,
      speed: 2,
      timer: 0,
      frame: 0,
      calm: matchMedia("(prefers-reduced-motion: reduce)"),
    });
  }

  get playing() {
    return this.timer !== 0;
  }

  /** Show a film's last step, or nothing for null. */
  load(film) {
    this.pause();
    this.film = film;
    this.step = film ? film.steps - 1 : 0;
  }

  goTo(step) {
    this.step = Math.min(this.film.steps - 1, Math.max(0, step));
    cancelAnimationFrame(this.frame);
    const began = performance.now();
    const fade = (now) => {
      // changed cells light up and dim to a frame that stays
      const flash = this.calm.matches ? 0 : Math.max(0, 1 - (now - began) / 700);
      this.change(Math.max(0.25, flash));
      if (flash > 0) this.frame = requestAnimationFrame(fade);
    };
    fade(began);
  }

  play() {
    if (this.step === this.film.steps - 1) this.goTo(0);
    clearInterval(this.timer);
    this.timer = setInterval(() => {
      this.goTo(this.step + 1);
      if (this.step === this.film.steps - 1) this.pause();
    }, 1000 / this.speed);
    this.change(0.25);
  }

  pause() {
    if (!this.playing) return;
    clearInterval(this.timer);
    this.timer = 0;
    this.change(0.25);
  }

  setSpeed(speed) {
    this.speed = speed;
    if (this.playing) this.play();
  }
}
