/**
 * The views of `nexus-demo top`, as pure functions of a snapshot: a screen of exactly so many rows and columns, and a block of plain lines.
 * What does not fit is left out from the least important on, never wrapped.
 */
import { bar, bytes, grouped, milliseconds, percent } from './format.js'
import type { Paint, Style } from './style.js'
import type { TopExpert, TopSnapshot } from './top-snapshot.js'

export interface Size {
  readonly columns: number
  readonly rows: number
}

interface Piece {
  readonly text: string
  readonly paint?: Paint
}
type Line = readonly (string | Piece)[]

const dash = '–'
const width = (text: string): number => [...text].length

/** A line of at most so many cells; a cut one ends in an ellipsis. */
function fit(line: Line, columns: number): string {
  const pieces = line.map((piece): Piece => (typeof piece === 'string' ? { text: piece } : piece))
  const total = pieces.reduce((sum, { text }) => sum + width(text), 0)
  let left = total <= columns ? columns : Math.max(0, columns - 1)
  let out = ''
  for (const { text, paint } of pieces) {
    const part = [...text].slice(0, left).join('')
    left -= width(part)
    if (part !== '') out += paint ? paint(part) : part
  }
  return total <= columns ? out.trimEnd() : columns > 0 ? `${out}…` : ''
}

const show = (value: number | null, digits: number): string => (value === null ? dash : value.toFixed(digits))
const plural = (n: number, what: string): string => `${grouped(n)} ${what}${n === 1 ? '' : 's'}`

/** Minutes and seconds. */
function clock(ms: number): string {
  const seconds = Math.floor(ms / 1000)
  return `${String(Math.floor(seconds / 60)).padStart(2, '0')}:${String(seconds % 60).padStart(2, '0')}`
}

function rateText({ rate, stepMs }: TopSnapshot): string {
  const own = stepMs === null ? `${dash} ms a step` : `${milliseconds(stepMs)} ms a step`
  if (rate === null) return `${dash} steps/s (the first interval is not over)  ${own}`
  return `${grouped(rate.stepsPerSecond)} steps/s  ${grouped(rate.tokensPerSecond)} tokens/s  ${own}`
}

function temperaturePaint(style: Style, temperature: TopExpert['temperature']): Paint {
  if (temperature === 'hot') return style.red
  if (temperature === 'warm') return style.yellow
  return temperature === 'cold' ? style.cyan : style.dim
}

function planText({ strategy }: TopSnapshot): string {
  const { reason, failures, lastFailure } = strategy
  return failures === 0 ? reason : `${plural(failures, 'failure')} (${lastFailure})  ${reason}`
}

function expertsText({ experts }: TopSnapshot): string {
  if (experts === null) return `${dash} (no profiler)`
  const { loadImbalance, normalizedEntropy, drift, forecast, windowSteps } = experts
  const figures = `imbalance ${show(loadImbalance, 2)}  entropy ${show(normalizedEntropy, 2)}  drift ${show(drift, 2)}`
  return `${figures}  forecast ${forecast ?? dash}  window ${grouped(windowSteps)}`
}

function slicesText({ slices }: TopSnapshot): string {
  if (slices === null) return `${dash} (off)`
  const { inUse, enforcement, reason, switches, migrations } = slices
  const counts = `${grouped(switches)} ${switches === 1 ? 'switch' : 'switches'}  ${plural(migrations, 'migration')}`
  return `${inUse ? 'in use' : 'planned, not in use'}  ${counts}  ${enforcement}: ${reason}`
}

function streamsText({ streams }: TopSnapshot): string {
  if (streams === null) return `${dash} (off)`
  const load = streams.list.map(({ share }) => `${Math.round(100 * share)}%`).join(' ')
  return `${streams.inUse ? 'in use' : 'assigned, not in use'}  ${streams.assignment}  load ${load}`
}

function graphsText({ graphs }: TopSnapshot): string {
  if (graphs === null) return `${dash} (off)`
  const steps = graphs.hits + graphs.misses
  const hits = steps === 0 ? dash : percent(graphs.hits / steps)
  const waste = graphs.paddingWaste === null ? dash : percent(graphs.paddingWaste)
  const fallbacks = graphs.fallbacks === 0 ? '' : `  ${plural(graphs.fallbacks, 'fallback')} (${graphs.lastFallback})`
  const held = `${grouped(graphs.graphs)} held, ${bytes(graphs.bytes)}`
  return `${held}  hits ${hits}  padding ${waste}  ${plural(graphs.captures, 'capture')}${fallbacks}`
}

function powerText({ power }: TopSnapshot): string {
  if (power.watts === null) return `${dash} (${power.reason ?? 'not known'})`
  const tokens = power.tokensPerJoule === null ? dash : grouped(power.tokensPerJoule)
  const busy = power.gpuUtilisation === null ? '' : `  busy ${percent(power.gpuUtilisation)}`
  return `${power.watts.toFixed(1)} W (${power.source})  ${tokens} tokens/J${busy}`
}

const labelWidth = 9
const labelled = (style: Style, label: string, text: string): Line => [
  { text: label.padEnd(labelWidth), paint: style.bold },
  text,
]

function sliceLines(snapshot: TopSnapshot, style: Style): Line[] {
  const { slices } = snapshot
  if (slices === null) return []
  const names = Math.max(...slices.list.map(({ name }) => width(name)))
  const sms = Math.max(...slices.list.map((each) => String(each.sms).length))
  return slices.list.map((slice) => [
    ' '.repeat(labelWidth),
    { text: slice.name.padEnd(names), paint: slice.name === 'hot' ? style.red : (text: string) => text },
    `  ${String(slice.sms).padStart(sms)} ${snapshot.device === 'cpu' ? 'workers' : 'SMs'}`,
    `  ${plural(slice.experts, 'expert').padStart(11)}  ${percent(slice.share).padStart(7)}  `,
    { text: slice.enforcement, paint: style.dim },
  ])
}

/** One expert in so many cells. */
function expertPieces(expert: TopExpert, largest: number, cells: number, style: Style): Piece[] {
  const paint = temperaturePaint(style, expert.temperature)
  const where = expert.slice === null ? '' : ` ${expert.slice.padEnd(6)}`
  const stream = expert.stream === null ? '' : ` s${String(expert.stream).padEnd(2)}`
  const left = `${String(expert.expert).padStart(3)} ${percent(expert.share).padStart(7)} `
  const head = width(left) + 8 + width(where) + width(stream) + 1
  const drawn = cells > head + 3 ? bar(largest > 0 ? expert.share / largest : 0, cells - head) : ''
  return [
    { text: left },
    { text: expert.temperature.padEnd(8), paint },
    { text: `${where}${stream}`, paint: style.dim },
    { text: ' ' },
    { text: drawn, paint },
    { text: ' '.repeat(Math.max(0, cells - head - width(drawn))) },
  ]
}

const columnCells = 38

/** Experts beside each other: as few as there have to be, as many as there is room for. */
function expertColumns(experts: number, rows: number, columns: number): number {
  return Math.max(1, Math.min(Math.floor((columns + 2) / (columnCells + 2)), Math.ceil(experts / rows)))
}

/** Experts in as many rows as there are; by number where all fit, else the busiest. */
function expertLines(snapshot: TopSnapshot, rows: number, columns: number, style: Style): Line[] {
  const list = snapshot.experts?.list ?? []
  if (list.length === 0 || rows <= 0) return []
  const most = expertColumns(list.length, rows, columns)
  const fits = list.length <= rows * most
  const shown = fits ? list : [...list].sort((a, b) => b.share - a.share || a.expert - b.expert).slice(0, rows * most)
  const largest = Math.max(...shown.map(({ share }) => share))
  const lines = Math.min(rows, Math.ceil(shown.length / most))
  const cells = Math.floor((columns + 2) / most) - 2
  return Array.from({ length: lines }, (_, row): Line => {
    const line: Piece[] = []
    for (let column = 0; column < most; column++) {
      const expert = shown[column * lines + row]
      if (expert === undefined) continue
      if (column > 0) line.push({ text: '  ' })
      line.push(...expertPieces(expert, largest, cells, style))
    }
    return line
  })
}

/** A screen: never more lines than rows, nor more cells in a line than columns. */
export function topScreen(snapshot: TopSnapshot, size: Size, style: Style): string[] {
  const { columns, rows } = size
  const { device, dtype, experts } = snapshot
  const above: Line[] = [
    [{ text: 'nexus-demo top', paint: style.bold }, `  ${device} ${dtype}  ${clock(snapshot.elapsedMs)}  (q quits)`],
    labelled(style, 'rate', rateText(snapshot)),
    labelled(style, 'plan', planText(snapshot)),
    labelled(style, 'slices', slicesText(snapshot)),
  ]
  const below: Line[] = [
    labelled(style, 'streams', streamsText(snapshot)),
    labelled(style, 'graphs', graphsText(snapshot)),
    labelled(style, 'power', powerText(snapshot)),
    ...(rows >= 24 ? [[]] : []),
  ]
  // Of a low screen the experts get at least three rows before slices have theirs.
  const spare = rows - above.length - below.length - 1
  const slices = sliceLines(snapshot, style).slice(0, Math.max(0, spare - 3))
  const forExperts = Math.max(0, spare - slices.length)
  const all = experts?.list.length ?? 0
  const shown = countShown(all, forExperts, columns)
  const some = shown < all ? `busiest ${shown} of ${all}  ` : ''
  const lines = [
    ...above,
    ...slices,
    ...below,
    labelled(style, 'experts', `${some}${expertsText(snapshot)}`),
    ...expertLines(snapshot, forExperts, columns, style),
  ]
  return lines.slice(0, rows).map((line) => fit(line, columns))
}

function countShown(experts: number, rows: number, columns: number): number {
  return rows <= 0 ? 0 : Math.min(experts, rows * expertColumns(experts, rows, columns))
}

/** A block of lines with all figures, for what is no terminal. */
export function topBlock(snapshot: TopSnapshot, style: Style): string[] {
  const { device, dtype, experts, slices } = snapshot
  const seconds = `${(snapshot.elapsedMs / 1000).toFixed(1)} s`
  const steps = `${plural(snapshot.steps, 'step')}, ${plural(snapshot.tokens, 'token')}`
  const lines: Line[] = [
    [{ text: `[${seconds}]`, paint: style.bold }, ` ${device} ${dtype}  ${rateText(snapshot)}  ${steps}`],
    labelled(style, 'plan', planText(snapshot)),
    labelled(style, 'slices', slicesText(snapshot)),
    ...(slices === null ? [] : sliceLines(snapshot, style)),
    labelled(style, 'streams', streamsText(snapshot)),
    labelled(style, 'graphs', graphsText(snapshot)),
    labelled(style, 'power', powerText(snapshot)),
    labelled(style, 'experts', expertsText(snapshot)),
  ]
  const list = experts?.list ?? []
  for (let e = 0; e < list.length; e += 4) {
    const pieces = list.slice(e, e + 4).flatMap((expert) => expertPieces(expert, 0, 0, style))
    lines.push([' '.repeat(labelWidth - 3), ...pieces])
  }
  return lines.map((line) => fit(line, Number.MAX_SAFE_INTEGER))
}
