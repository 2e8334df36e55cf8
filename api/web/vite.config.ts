import { defineConfig } from "vite";

// The build is served from the Go binary under a policy without inline code,
// so nothing may be inlined: no data URIs, no module preload shim.
export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    sourcemap: false,
  },
  server: { proxy: { "/v1": "http://127.0.0.1:4173" } },
});
