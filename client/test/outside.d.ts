/** Tests use Backbone as page code does: untyped. */

declare module "backbone" {
  const Backbone: any;
  export default Backbone;
}

declare module "react";
declare module "react-test-renderer";
