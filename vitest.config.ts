import { defineConfig } from 'vitest/config'

// One run for the whole workspace: every folder that has a vitest.config.ts, and the tests of the workspace itself.
export default defineConfig({
  test: {
    projects: [
      '{kernels,packages/*,apps/*}/vitest.config.ts',
      { test: { name: 'workspace', include: ['tests/**/*.test.ts'], environment: 'node' } },
    ],
    reporters: ['default', './scripts/closing-line.ts'],
  },
})
