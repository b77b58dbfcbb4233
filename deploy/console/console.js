// Starts the parts of the page.

import { ApiError } from "./api.js";
import { startAsk } from "./ask.js";
import { poll, startCluster } from "./cluster.js";
import { startKey } from "./key.js";
import { startPicture } from "./picture.js";
import { model, watchState } from "./state.js";
import { startTheme } from "./theme.js";

// Before a key is typed in, the name is not known; that is no problem yet.
const nameModel = () => model().catch((failure) => {
  if (!(failure instanceof ApiError)) throw failure;
});

startTheme();
startPicture();
startAsk();
startCluster();
startKey(() => {
  nameModel();
  poll();
});
nameModel();
watchState();
