// Boots an RP2040 image up to its greeting with doubles in place of parts of the chip, and says
// in JSON what became of it.
//
//   node pico_probe.mjs RUN_MJS MODULE UF2 FLASH FAULT
//
// FLASH: what the flash does about its quad bit: enabled, volatile (takes it until power-down),
// fixed (never). FAULT: none, xosc (never stable), pll (never locks).

import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [runMjs, module, uf2, flashKind, fault] = process.argv.slice(2);
const { boot, correctWakeUp, runSlice } = await import(pathToFileURL(runMjs).href);
const { RP2040 } = await import(pathToFileURL(path.join(module, 'dist/esm/index.js')).href);

// A QSPI flash behind the RP2040's controller, as far as a second stage can tell. What is pushed
// in a row is one transaction, which ends when the status is looked at.
class Flash {
  constructor(kind) {
    this.kind = kind;
    this.quad = kind === 'enabled';
    this.mayWriteStatus = false;
    this.continuous = false;
    this.transactions = [];
    this.registers = new Map();
    this.pushed = [];
    this.answers = [];
  }

  transact() {
    const sent = this.pushed;
    this.pushed = [];
    if (sent.length === 0) return;
    this.transactions.push(sent.map((item) => item.toString(16)).join(' '));
    const frames = this.registers.get(0x00);
    if (frames === 0x00070000) {
      const isWrite = sent[0] === 0x31 && this.mayWriteStatus && sent.length === 2;
      if (isWrite && this.kind === 'volatile') this.quad = (sent[1] & 2) !== 0;
      this.mayWriteStatus = sent[0] === 0x50 && sent.length === 1;
      const status = sent[0] === 0x35 ? (this.quad ? 2 : 0) : 0;
      this.answers.push(...sent.map((_, i) => (i === 0 ? 0xff : status)));
    } else if (frames === 0x005f0300 && this.registers.get(0xf4) === 0x2221) {
      // Command on one line, address on four, four clocks of waiting: fast read quad I/O.
      this.continuous = this.quad && sent[0] === 0xeb && (sent[1] & 0xf0) === 0xa0;
      this.answers.push(0xffffffff);
    }
  }

  readUint32(offset) {
    if (offset === 0x28) {
      this.transact();
      return 0x6; // not busy, room in the transmitter, nothing left in it
    }
    if (offset === 0x60) return this.answers.length > 0 ? this.answers.shift() : 0;
    return this.registers.get(offset) ?? 0;
  }

  writeUint32(offset, value) {
    if (offset === 0x60) {
      if (this.registers.get(0x08) === 1) this.pushed.push(value);
      return;
    }
    if (offset === 0x08) {
      this.pushed = [];
      this.answers = [];
    }
    if (offset !== 0x08 && this.registers.get(0x08) === 1) {
      throw new Error(`register 0x${offset.toString(16)} is written while the controller is on`);
    }
    this.registers.set(offset, value);
  }

  // How a read by the processor goes out, and whether this flash answers to it.
  get reads() {
    const how = [0x00, 0x04, 0xf4].map((offset) => this.registers.get(offset));
    const clocks = this.registers.get(0x14);
    if (this.registers.get(0x08) !== 1 || how[1] !== 0) return 'off';
    if (how[0] === 0x005f0300 && how[2] >>> 0 === 0xa0002022 && this.continuous) {
      return `quad, clock / ${clocks}`;
    }
    if (how[0] === 0x001f0300 && how[2] === 0x03000218 && !this.continuous) {
      return `serial, clock / ${clocks}`;
    }
    return 'nonsense';
  }
}

const chip = new RP2040();
const unknown = [];
const note = (where, message) => unknown.push(`${where}: ${message}`);
chip.logger = { debug() {}, info() {}, warn: note, error: note };
correctWakeUp(chip.core);
const flash = new Flash(flashKind);
chip.peripherals[0x18000].readUint32 = (offset) => flash.readUint32(offset);
chip.peripherals[0x18000].writeUint32 = (offset, value) => flash.writeUint32(offset, value);
const [stuck, register] = { none: [null, 0], xosc: [0x40024, 4], pll: [0x40028, 0] }[fault];
if (stuck !== null) {
  const peripheral = chip.peripherals[stuck];
  const read = peripheral.readUint32.bind(peripheral);
  peripheral.readUint32 = (offset) => read(offset) & (offset === register ? 0x7fffffff : ~0);
}
let said = '';
chip.uart[0].onByte = (byte) => (said += String.fromCharCode(byte));

boot(chip, uf2);
for (let slice = 0; slice < 100 && !chip.core.waiting; slice++) {
  runSlice(chip, new Uint8Array(1), null);
}
console.log(
  JSON.stringify({
    said,
    unknown,
    reads: flash.reads,
    transactions: flash.transactions,
    clkSys: chip.clkSys,
    baud: chip.uart[0].baudRate,
    pads: [0, 1].map((gpio) => chip.readUint32(0x4001c004 + 4 * gpio)),
    functions: [0, 1].map((gpio) => chip.readUint32(0x40014004 + 8 * gpio) & 31),
    vectors: chip.core.VTOR,
    cycles: chip.core.cycles,
  }),
);
