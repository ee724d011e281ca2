import { describe, expect, test } from 'vitest'
import { bar, bytes, grouped, median, milliseconds, percent, scientific, table } from '../src/format.js'
import { createStyle, wantsColor } from '../src/style.js'

describe('table', () => {
  test('right-aligns by default, two spaces between columns, no trailing space', () => {
    expect(
      table(
        [{ title: 'n' }, { title: 'name', align: 'left' }, { title: 'ms' }],
        [
          ['1', 'a', '10.5'],
          ['100', 'long name', '2'],
        ],
      ),
    ).toEqual(['  n  name         ms', '  1  a          10.5', '100  long name     2'])
  })
  test('a left-aligned last column is not padded', () => {
    expect(table([{ title: 'x' }, { title: 'result', align: 'left' }], [['1', 'ok']])).toEqual(['x  result', '1  ok'])
  })
  test('colours do not change the layout', () => {
    const strip = (line: string) => line.replaceAll(new RegExp(`${String.fromCharCode(27)}\\[\\d+m`, 'g'), '')
    const columns = [{ title: 'a' }, { title: 'b', align: 'left' }] as const
    const rows = (paint: (text: string) => string) => [
      [{ text: '1', paint }, 'x'] as const,
      ['22', { text: 'yy', paint }] as const,
    ]
    const colored = table(columns, rows(createStyle(true).red), createStyle(true).dim)
    expect(colored.join('')).toContain('\u001b[31m')
    expect(colored.map(strip)).toEqual(table(columns, rows(createStyle(false).red)))
  })
  test('refuses rows of another length', () => {
    expect(() => table([{ title: 'a' }], [['1', '2']])).toThrow(/expected 1 cells, got 2/)
  })
})

describe('bar', () => {
  test('in eighths of a cell', () => {
    expect(bar(1, 4)).toBe('████')
    expect(bar(0.5, 4)).toBe('██')
    expect(bar(0.53125, 4)).toBe('██▏')
    expect(bar(0, 4)).toBe('')
  })
  test('anything above nothing is seen; nothing sticks out', () => {
    expect(bar(1e-9, 10)).toBe('▏')
    expect(bar(7, 3)).toBe('███')
    expect(bar(-1, 3)).toBe('')
    expect(bar(Number.NaN, 3)).toBe('')
  })
})

test('milliseconds have three significant digits', () => {
  expect([0, 0.01234, 0.1234, 1.234, 12.34, 123.4, 1234.5].map(milliseconds)).toEqual([
    '0.00',
    '0.0123',
    '0.123',
    '1.23',
    '12.3',
    '123',
    '1235',
  ])
  expect(milliseconds(Number.NaN)).toBe('n/a')
})

test('other numbers', () => {
  expect([0, 999, 1000, 1234567.8].map(grouped)).toEqual(['0', '999', '1,000', '1,234,568'])
  expect([0, 512, 1536, 150 * 2 ** 30].map(bytes)).toEqual(['0 B', '512 B', '1.5 KiB', '150 GiB'])
  expect(percent(0.1234)).toBe('12.3 %')
  expect([0, 1.234e-6].map(scientific)).toEqual(['0', '1.2e-6'])
})

test('median', () => {
  expect(median([3, 1, 2])).toBe(2)
  expect(median([4, 1, 3, 2])).toBe(2.5)
  expect(median([])).toBeNaN()
})

describe('colours: FORCE_COLOR, then NO_COLOR and TERM=dumb, then the terminal', () => {
  const terminal = { isTTY: true }
  const pipe = {}
  test.each([
    [terminal, {}, true],
    [pipe, {}, false],
    [terminal, { NO_COLOR: '1' }, false],
    [terminal, { NO_COLOR: '' }, true],
    [terminal, { TERM: 'dumb' }, false],
    [pipe, { FORCE_COLOR: '1' }, true],
    [pipe, { FORCE_COLOR: '1', NO_COLOR: '1' }, true],
    [terminal, { FORCE_COLOR: '0' }, false],
  ])('%j %j → %s', (stream, env, expected) => {
    expect(wantsColor(stream, env)).toBe(expected)
  })
})
