/** Checks of a saved forecaster: what is restored can be trusted field by field, whatever wrote it. */
import { type ForecasterOptions, type ForecasterState, forecastMethods } from './forecast.js'
import type { ForecastMethod } from './model.js'
import { checkInteger, checkNumber, checkNumbers, checkObject, describe } from './validate.js'

const keys = [
  'bins',
  'partial',
  'partialSteps',
  'average',
  'steps',
  'periodBins',
  'binsSinceDetection',
  'chosen',
  'pending',
  'errors',
] as const satisfies readonly (keyof ForecasterState)[]

const anyNumber = { integer: false, max: Number.MAX_VALUE }

/** @throws TypeError or RangeError that names the field which is missing or wrong. */
export function checkForecasterState(
  name: string,
  value: unknown,
  options: ForecasterOptions,
  maxBins: number,
): ForecasterState {
  checkObject(name, value, keys)
  const { numExperts, horizonSteps } = options
  const vector = (field: string, values: unknown) => [...checkNumbers(field, values, numExperts, anyNumber)]
  const { bins, chosen, pending, errors, periodBins } = value
  if (!Array.isArray(bins)) throw new TypeError(`${name}.bins: expected an array, got ${describe(bins)}`)
  if (bins.length > maxBins) throw new RangeError(`${name}.bins: expected at most ${maxBins} bins, got ${bins.length}`)
  const known = forecastMethods.find((method) => method === chosen)
  if (known === undefined) {
    throw new TypeError(`${name}.chosen: expected one of ${forecastMethods.join(', ')}, got ${describe(chosen)}`)
  }
  checkObject(`${name}.pending`, pending, forecastMethods)
  checkObject(`${name}.errors`, errors, forecastMethods)
  const saying = {} as Record<ForecastMethod, number[] | null>
  const wrong = {} as Record<ForecastMethod, [number, number, number]>
  for (const method of forecastMethods) {
    const said = pending[method]
    saying[method] = said === null ? null : vector(`${name}.pending.${method}`, said)
    const sums = checkNumbers(`${name}.errors.${method}`, errors[method], 3, anyNumber)
    wrong[method] = [sums[0] ?? 0, sums[1] ?? 0, sums[2] ?? 0]
  }
  return {
    bins: bins.map((bin: unknown, i) => vector(`${name}.bins[${i}]`, bin)),
    partial: vector(`${name}.partial`, value.partial),
    partialSteps: checkInteger(`${name}.partialSteps`, value.partialSteps, 0, horizonSteps - 1),
    average: vector(`${name}.average`, value.average),
    steps: checkInteger(`${name}.steps`, value.steps, 0, Number.MAX_SAFE_INTEGER),
    periodBins: periodBins === null ? null : checkNumber(`${name}.periodBins`, periodBins, { min: 1 }),
    binsSinceDetection: checkInteger(`${name}.binsSinceDetection`, value.binsSinceDetection, 0, 1024),
    chosen: known,
    pending: saying,
    errors: wrong,
  }
}
