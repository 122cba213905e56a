"use strict";

// The search would need a worker made of a blob.
Redoc.init("openapi.json", { disableSearch: true, hideDownloadButton: false }, document.getElementById("page"));
