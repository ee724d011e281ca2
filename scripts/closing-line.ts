// A vitest reporter: the totals as one plain line, which any harness can read. scripts/test.mjs, which adds the C++ tests
// and prints the line itself, asks for the numbers in a file instead (NEXUS_TOTALS_FILE).
import { writeFileSync } from 'node:fs'
import type { Reporter, TestModule } from 'vitest/node'
import { LEFT_OUT } from '../tests/left-out.js'
import { closingLine } from './totals.mjs'

export default class ClosingLine implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    const totals = { passed: 0, failed: unhandledErrors.length, skipped: 0 }
    const leftOut: string[] = []
    for (const module of modules) {
      if (module.errors().length > 0) totals.failed++
      for (const suite of module.children.allSuites()) if (suite.errors().length > 0) totals.failed++
      for (const test of module.children.allTests()) {
        const { state } = test.result()
        if (state === 'passed') totals.passed++
        else if (state === 'failed') totals.failed++
        else totals.skipped++
        if (test.fullName.includes(LEFT_OUT)) leftOut.push(`${module.relativeModuleId} > ${test.fullName}`)
      }
    }
    if (leftOut.length > 0) console.log(`Left out on this machine:\n${leftOut.map((name) => `  ${name}`).join('\n')}`)
    const file = process.env.NEXUS_TOTALS_FILE
    if (file) writeFileSync(file, JSON.stringify(totals))
    else console.log(closingLine(totals))
  }
}
