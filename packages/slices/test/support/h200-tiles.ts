// What an NVIDIA H200's kernels were like when they were calibrated (2026-11-23): experts of olmoe-1b-7b, 4096 tokens.
import { hopperTile, type TileModel } from '../../src/simulator.js'

const rate = 1.015e15
const fullClockSms = 72

/** 64 experts, 32768 assignments. */
export const h200Tiles: TileModel = {
  tile: hopperTile(512, 32768),
  linears: [
    { columns: 2048, written: 1024, depth: 2048 },
    { columns: 2048, written: 2048, depth: 1024 },
  ],
  bytesPerValue: 2,
  latencyUs: 1.84,
  memoryBytesPerSecond: 4.64e12,
  rate: [
    { sms: fullClockSms, perSecond: (rate * fullClockSms) / 132 },
    { sms: 132, perSecond: rate * Math.cbrt(fullClockSms / 132) },
  ],
  exposed: 0.41,
  tileUs: 1,
  stepUs: 74,
  dividedUs: 23,
  combineBytesPerSecond: 110e9,
}
