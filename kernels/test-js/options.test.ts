import { describe, expect, it } from 'vitest'
import { checkInteger, checkNumber, checkOneOf, checkOptions, describe as describeValue } from '../lib/index.js'

describe('checks of arguments', () => {
  it('unknown options are named, with the known one that is most like it', () => {
    expect(() => checkOptions('Router', { topK: 1, numExpert: 4 }, ['topK', 'numExperts'])).toThrow(
      new TypeError("Router: unknown option 'numExpert'; did you mean 'numExperts'?"),
    )
    expect(() => checkOptions('Router', { zebra: 4 }, ['topK'])).toThrow(/known are: topK/)
    expect(() => checkOptions('Router', null, [])).toThrow(/expected an object of options, got null/)
    expect(() => checkOptions('Router', undefined, [])).not.toThrow()
  })

  it('integers', () => {
    expect(checkInteger('n', 3, 1, 5)).toBe(3)
    expect(() => checkInteger('n', '3', 1, 5)).toThrow(new TypeError("n: expected an integer from 1 to 5, got '3'"))
    for (const bad of [0, 6, 1.5, NaN, Infinity]) expect(() => checkInteger('n', bad, 1, 5)).toThrow(RangeError)
    expect(() => checkInteger('n', -1)).toThrow(/at least 0, got -1/)
  })

  it('numbers', () => {
    expect(checkNumber('x', 0.5, 0, 1)).toBe(0.5)
    for (const bad of [NaN, Infinity, -0.1, 1.1]) expect(() => checkNumber('x', bad, 0, 1)).toThrow(RangeError)
    expect(() => checkNumber('x', 1n)).toThrow(new TypeError('x: expected a finite number, got 1n'))
  })

  it('choices', () => {
    expect(checkOneOf('kind', 'b', ['a', 'b'])).toBe('b')
    expect(() => checkOneOf('kind', 'c', ['a', 'b'])).toThrow(new RangeError("kind: expected one of 'a', 'b', got 'c'"))
    expect(() => checkOneOf('kind', 1, ['a', 'b'])).toThrow(TypeError)
  })

  it.each([
    [null, 'null'],
    [undefined, 'undefined'],
    ['x', "'x'"],
    [[1, 'a'], "[1, 'a']"],
    [new Float32Array(1), 'an instance of Float32Array'],
    [{}, 'an object'],
    [Object.create(null), 'an object'],
  ])('%o is described as %s', (value, text) => {
    expect(describeValue(value)).toBe(text)
  })
})
