"use strict";

// The addresses in the document are relative to it. Swagger UI takes some as relative to the host, so they are made absolute:
// the API may be served under a prefix that it does not know of.
(async function () {
  const base = new URL(".", window.location.href);
  const answer = await fetch("openapi.json");
  const spec = await answer.json();
  spec.servers = [{ url: base.href.replace(/\/$/, "") }];
  const flow = spec.components.securitySchemes.oauth2.flows.clientCredentials;
  flow.tokenUrl = new URL(flow.tokenUrl, base).href;
  window.ui = SwaggerUIBundle({
    spec: spec,
    dom_id: "#page",
    deepLinking: true,
    displayRequestDuration: true,
    validatorUrl: null,
  });
})();
