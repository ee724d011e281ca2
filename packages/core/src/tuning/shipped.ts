/**
 * Measured choices that come with the package, each file of one class of devices and with its source. Only what was measured, and only where
 * it is not the heuristic's choice: the rest is the heuristic's.
 */
import { type TuneFile, tuneSchema } from './tune-file.js'

export const shipped: readonly TuneFile[] = [
  {
    schema: tuneSchema,
    deviceClass: 'sm_90/132',
    device: 'NVIDIA H200',
    driver: '13.0',
    nexus: '0.1.0',
    source:
      'docs/kernels/log.md, entry 5.3: olmoe-1b-7b at 64 tokens, whole layer by graph, 215 us with these against 221 with 16-row tiles',
    linears: [
      {
        dtype: 'bf16',
        numExperts: 64,
        k: 2048,
        n: 2048,
        gated: true,
        order: null,
        rows: [
          { rows: 512, variants: ['wgmma_256x64x64_s5'], heuristic: 'mma_16x32x128_s6', evenUs: {}, skewedUs: {} },
        ],
      },
      {
        dtype: 'bf16',
        numExperts: 64,
        k: 1024,
        n: 2048,
        gated: false,
        order: null,
        rows: [
          { rows: 512, variants: ['wgmma_256x64x64_s5'], heuristic: 'mma_16x32x128_s6', evenUs: {}, skewedUs: {} },
        ],
      },
    ],
  },
]
