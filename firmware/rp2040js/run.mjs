// Runs an RP2040 image in rp2040js, with UART0 on an open terminal and cycles counted.
//
//   node rp2040js.mjs --module DIR --uf2 FILE --terminal FD [--plan FILE --out FILE]
//
// The UF2 file is written to the emulated flash block by block, as the bootloader does that the
// board shows as a USB drive. What the bootrom does then is done here, as rp2040js has none: the
// second stage is copied from the flash to RAM and called, if its checksum is right. Left out are
// the USB bootloader itself, the bootrom's table of functions, and the second core, which
// would wait there for ever.
//
// Plan and output are those of qemu/count.c, cycles in place of instructions.
//
// Ends with code 1 and one line on stderr where the image does what the chip would not survive:
// an address with nothing behind it, an instruction that does not exist.

import fs from 'node:fs';
import path from 'node:path';
import tty from 'node:tty';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const FLASH = 0x10000000;
const BOOT2_RAM = 0x20041f00;
const BOOT2_BYTES = 256;
const FAMILY = 0xe48bff56;
const UF2_BLOCK_BYTES = 512;
const SLICE_INSTRUCTIONS = 200000; // between two looks at the terminal

function fail(message) {
  fs.writeSync(2, `${message}\n`);
  process.exit(1);
}

function readUf2(file) {
  const data = fs.readFileSync(file);
  const blocks = [];
  for (let at = 0; at + UF2_BLOCK_BYTES <= data.length; at += UF2_BLOCK_BYTES) {
    const magic = [0, 4, UF2_BLOCK_BYTES - 4].map((offset) => data.readUInt32LE(at + offset));
    if (magic[0] !== 0x0a324655 || magic[1] !== 0x9e5d5157 || magic[2] !== 0x0ab16f30) {
      continue; // the bootloader takes no notice of other files
    }
    if (data.readUInt32LE(at + 28) === FAMILY) {
      const bytes = data.readUInt32LE(at + 16);
      blocks.push({
        address: data.readUInt32LE(at + 12),
        payload: data.subarray(at + 32, at + 32 + bytes),
      });
    }
  }
  return blocks;
}

function checksum(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte << 24;
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc << 1) ^ (crc & 0x80000000 ? 0x04c11db7 : 0);
    }
  }
  return crc >>> 0;
}

// Registers and RAM of a chip that was just switched on are not zero.
function fillWithNoise(bytes) {
  let state = 0x2545f491;
  for (let i = 0; i < bytes.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state;
  }
}

/** Does what switching the chip on with this file in its flash does. */
export function boot(chip, uf2) {
  fillWithNoise(chip.sram);
  const blocks = readUf2(uf2);
  for (const { address, payload } of blocks) {
    if (address < FLASH || address + payload.length > FLASH + chip.flash.length) {
      fail(`${uf2}: a block is not for the flash: 0x${address.toString(16)}`);
    }
    chip.flash.set(payload, address - FLASH);
  }
  if (blocks.length === 0) {
    fail(`${uf2}: no block of UF2 is for the RP2040`);
  }
  const stage = chip.flash.subarray(0, BOOT2_BYTES);
  if (checksum(stage.subarray(0, BOOT2_BYTES - 4)) !== chip.flashView.getUint32(252, true)) {
    fail(`${uf2}: the second stage's checksum is wrong: the chip would wait for USB`);
  }
  chip.sram.set(stage, BOOT2_RAM - 0x20000000);
  chip.core.SP = BOOT2_RAM;
  chip.core.LR = 0;
  chip.core.PC = BOOT2_RAM;
}

// rp2040js takes an interrupt that ends a wfi even where PRIMASK masks it; the architecture says
// that the core only wakes (Armv6-M, B1.5.19).
export function correctWakeUp(core) {
  const check = core.checkForInterrupts.bind(core);
  core.checkForInterrupts = () =>
    core.waiting && core.PM ? (core.pendingInterrupts & core.enabledInterrupts) !== 0 : check();
}

class Counter {
  constructor(planFile, outFile) {
    this.out = fs.openSync(outFile, 'w');
    this.nodes = [];
    for (const line of fs.readFileSync(planFile, 'ascii').split('\n')) {
      const words = line.split(' ');
      if (words[0] === 'begin') this.begin = Number(words[1]);
      if (words[0] === 'end') this.end = Number(words[1]);
      if (words[0] === 'node') this.nodes.push(Number(words[2]));
    }
    this.running = false;
  }

  get addresses() {
    return [this.begin, this.end, ...this.nodes];
  }

  // An address may stand for several nodes, and may be reached more than once: each node ends
  // when its address is first reached after its predecessor's end.
  pass(address, cycles) {
    if (address === this.begin) {
      this.running = true;
      this.started = this.nodeStarted = cycles;
      this.counts = [];
    }
    while (this.running && this.nodes[this.counts.length] === address) {
      this.counts.push(cycles - this.nodeStarted);
      this.nodeStarted = cycles;
    }
    if (address === this.end && this.running) {
      this.running = false;
      fs.writeSync(this.out, `${[cycles - this.started, ...this.counts].join(' ')}\n`);
    }
  }
}

// The UART's end of the terminal: what came in and waits for room, and what is to go out.
class Terminal {
  constructor(fd, uart) {
    this.fd = fd;
    this.uart = uart;
    this.received = [];
    this.sent = [];
    this.wake = null;
    uart.onByte = (byte) => this.sent.push(byte);
    new tty.ReadStream(fd) // does not block, as a read by fs would, which also keeps exit waiting
      .on('data', (data) => {
        this.received.push(...data);
        this.wake?.();
      })
      .on('error', () => process.exit(0)); // nobody holds the other end any more
  }

  feed() {
    let used = 0;
    while (used < this.received.length && !this.uart.rxFIFO.full) {
      this.uart.feedByte(this.received[used++]);
    }
    this.received.splice(0, used);
  }

  flush() {
    try {
      while (this.sent.length > 0) {
        this.sent.splice(0, fs.writeSync(this.fd, Uint8Array.from(this.sent)));
      }
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error; // the reader is slow: the rest goes out later
    }
  }

  async wait() {
    while (this.received.length === 0) {
      await new Promise((resolve) => {
        this.wake = resolve;
        if (this.sent.length > 0) setTimeout(resolve, 1);
      });
      this.flush();
    }
    this.wake = null;
  }
}

/** Runs until the core waits, or for a while. */
export function runSlice(chip, watched, counter) {
  const { core, clock } = chip;
  const nanosPerCycle = 1e9 / chip.clkSys;
  for (let i = 0; i < SLICE_INSTRUCTIONS && !core.waiting; i++) {
    const pc = core.registers[15];
    if (watched[(pc - FLASH) >>> 1]) {
      counter.pass(pc, core.cycles);
    }
    clock.tick(core.executeInstruction() * nanosPerCycle);
  }
  if (core.waiting && (core.pendingInterrupts & core.enabledInterrupts) !== 0) {
    core.waiting = false; // what a wfi waits for had already come
  }
}

async function run(chip, terminal, counter) {
  const { core, clock } = chip;
  const watched = new Uint8Array(chip.flash.length / 2);
  for (const address of counter?.addresses ?? []) {
    watched[(address - FLASH) >>> 1] = 1;
  }
  for (;;) {
    runSlice(chip, watched, counter);
    terminal.flush();
    if (core.waiting) {
      const asleep = process.hrtime.bigint();
      await terminal.wait();
      clock.tick(Number(process.hrtime.bigint() - asleep)); // the timer goes on meanwhile
    } else {
      await new Promise(setImmediate);
    }
    terminal.feed();
  }
}

async function main() {
  const { values: options } = parseArgs({
    options: {
      module: { type: 'string' },
      uf2: { type: 'string' },
      terminal: { type: 'string' },
      plan: { type: 'string' },
      out: { type: 'string' },
    },
  });
  const entry = path.join(options.module, 'dist', 'esm', 'index.js');
  const { RP2040 } = await import(pathToFileURL(entry).href);
  const chip = new RP2040();
  const report = (where, message) =>
    fail(`${where}: ${message} (pc 0x${chip.core.PC.toString(16)})`);
  chip.logger = { debug() {}, info() {}, warn: report, error: report };
  correctWakeUp(chip.core);
  boot(chip, options.uf2);
  const counter = options.plan ? new Counter(options.plan, options.out) : null;
  await run(chip, new Terminal(Number(options.terminal), chip.uart[0]), counter);
}

if (fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main().catch((error) => fail(String(error)));
}
