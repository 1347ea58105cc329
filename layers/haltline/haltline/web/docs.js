/** The description of the API, by Swagger UI. */

const place = document.getElementById("swagger-ui");
const spec = await (await fetch(place.dataset.describes, { cache: "no-store" })).json();
// Beside this page, also under a prefix that the server does not know of.
spec.servers = [{ url: new URL(".", location.href).href.replace(/\/$/, "") }];
globalThis.SwaggerUIBundle({
  domNode: place,
  spec,
  layout: "BaseLayout",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  validatorUrl: null, // it would be shown the address of this server
});
