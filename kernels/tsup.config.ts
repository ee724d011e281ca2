import { defineConfig } from 'tsup'

/** CommonJS, file by file: one module state for both entries. scripts/esm-wrappers.mjs adds what `import` takes. */
export default defineConfig({
  entry: ['lib/**/*.ts'],
  bundle: false,
  format: ['cjs'],
  dts: {
    entry: { index: 'lib/index.ts', 'binding-entry': 'lib/binding-entry.ts' },
    // tsup 8 sets baseUrl for its d.ts pass, which TypeScript 6 reports as deprecated
    compilerOptions: { ignoreDeprecations: '6.0' },
  },
  sourcemap: true,
  clean: true,
  target: 'node20',
})
