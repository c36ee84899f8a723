// Chats in the browser's own database; they never leave it unless the reader exports them.

const NAME = "dropless-playground";
const STORE = "conversations";

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/** One request to the store, as a promise of its result. */
async function ask(mode, work) {
  const transaction = (await database()).transaction(STORE, mode);
  const request = work(transaction.objectStore(STORE));
  transaction.commit(); // at once: the page may be about to close
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** All of them, the latest first. */
export async function loadAll() {
  const all = await ask("readonly", (store) => store.getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const save = (conversation) => ask("readwrite", (store) => store.put(conversation));
export const remove = (id) => ask("readwrite", (store) => store.delete(id));
