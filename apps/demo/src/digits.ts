/**
 * Part three: real data through a router. Images of handwritten digits are the tokens; the experts are random, so nothing is
 * learnt, and yet the load is uneven and similar images meet the same experts. That is what a profiler is for.
 */
import { readFile } from 'node:fs/promises'
import { MoELayer } from '@nexus/core'
import { Tensor } from '@nexus/native'
import { ExpertProfiler, type Temperature } from '@nexus/profiler'
import { type Context, throwIfStopped } from './context.js'
import { bar, grouped, percent, table } from './format.js'
import type { DigitsReport } from './report.js'
import type { Paint, Style } from './style.js'

const pixels = 64
const brightest = 16
const numExperts = 16
const topK = 2
const batch = 128

interface Digits {
  /** [images, 64], 0 to 1 */
  readonly images: Float32Array
  readonly labels: Uint8Array
}

/** Reads lines of 64 pixels (0 to 16) and a label (0 to 9); lines that start with # are comments. */
export function parseDigits(text: string): Digits {
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('#'))
  const images = new Float32Array(lines.length * pixels)
  const labels = new Uint8Array(lines.length)
  for (const [i, line] of lines.entries()) {
    const values = line.split(',').map(Number)
    const label = values[pixels]
    if (
      values.length !== pixels + 1 ||
      label === undefined ||
      values.some((v) => !(v >= 0 && v <= brightest)) ||
      label > 9
    ) {
      throw new RangeError(`digits.csv: image ${i + 1} is not 64 pixels from 0 to 16 and a label from 0 to 9`)
    }
    images.set(
      values.slice(0, pixels).map((v) => v / brightest),
      i * pixels,
    )
    labels[i] = label
  }
  return { images, labels }
}

export async function routeDigits(context: Context, file: URL): Promise<DigitsReport> {
  const { device, seed, output, signal } = context
  output.progress.stage('routing handwritten digits')
  const { images, labels } = parseDigits(await readFile(file, 'utf8'))
  const profiler = new ExpertProfiler({ numExperts })
  const given = Array.from({ length: numExperts }, () => new Uint32Array(10))
  const layer = await MoELayer.create({ inputDim: pixels, hiddenDim: 128, numExperts, topK, device, seed })
  try {
    for (let start = 0; start < labels.length; start += batch) {
      throwIfStopped(signal)
      const tokens = Math.min(batch, labels.length - start)
      const rows = images.subarray(start * pixels, (start + tokens) * pixels)
      const x = Tensor.from(rows, [tokens, pixels], { dtype: device === 'cpu' ? 'f32' : 'bf16', device })
      try {
        const step = await layer.forward(x, { routing: true })
        const expertIds = (await step.routing?.expertIds.toArray()) ?? []
        for (const tensor of [step.output, step.routing?.expertIds, step.routing?.weights]) tensor?.dispose()
        profiler.record({ counts: step.stats.counts, tokens, timeMs: step.stats.times.totalMs })
        for (const [slot, expert] of expertIds.entries()) {
          const seen = given[expert]
          const digit = labels[start + Math.floor(slot / topK)]
          if (seen && digit !== undefined) seen[digit] = (seen[digit] ?? 0) + 1
        }
      } finally {
        x.dispose()
      }
      output.progress.tick(start + tokens, labels.length)
    }
  } finally {
    layer.dispose()
  }
  return { images: labels.length, numExperts, topK, load: profiler.snapshot(), favourites: given.map(favourite) }
}

function favourite(counts: Uint32Array): { digit: number; share: number } | null {
  const total = counts.reduce((sum, n) => sum + n, 0)
  const most = Math.max(...counts)
  return total === 0 ? null : { digit: counts.indexOf(most), share: most / total }
}

function temperaturePaint(style: Style, temperature: Temperature): Paint {
  if (temperature === 'hot') return style.red
  if (temperature === 'warm') return style.yellow
  return temperature === 'cold' ? style.cyan : style.dim
}

export function printDigits({ output }: Context, report: DigitsReport): void {
  const { style } = output
  const { load } = report
  const largest = Math.max(...load.experts.map((expert) => expert.count))
  const show = (value: number | null, digits: number) => (value === null ? 'n/a' : value.toFixed(digits))
  output.print(
    '',
    style.bold('Handwritten digits through a layer'),
    `${grouped(report.images)} images of 8×8 pixels as tokens, ${report.numExperts} random experts, top-${report.topK}.`,
    ...table(
      [
        { title: 'expert' },
        { title: 'assignments' },
        { title: 'share' },
        { title: 'mostly' },
        { title: 'temperature', align: 'left' },
        { title: 'load', align: 'left' },
      ],
      load.experts.map((expert) => {
        const paint = temperaturePaint(style, expert.temperature)
        const most = report.favourites[expert.expert]
        return [
          String(expert.expert),
          grouped(expert.count),
          percent(expert.share),
          most ? `${most.digit} (${Math.round(100 * most.share)} %)` : 'n/a',
          { text: expert.temperature, paint },
          { text: bar(expert.count / largest, 32), paint },
        ]
      }),
      style.dim,
    ),
    `load imbalance ${show(load.loadImbalance, 2)} (1 is even, ${report.numExperts} all on one), ` +
      `entropy ${show(load.normalizedEntropy, 2)} of 1, drift ${show(load.drift, 2)}`,
  )
}
