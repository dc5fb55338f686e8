// Does in a real browser what a student does: opens the editor, makes a file, types into it, waits until it is saved, and looks.
//
//   node edit-file.mjs URL FILE TEXT [SCREENSHOT]
// CHROMIUM: the browser's program (default /usr/bin/chromium). Prints one JSON line with the times in milliseconds; exits 1 with the
// reason when a step does not come about in time.
import { chromium } from 'playwright-core';

const [url, file, text, screenshot] = process.argv.slice(2);
if (!text) {
  console.error('usage: edit-file.mjs URL FILE TEXT [SCREENSHOT]');
  process.exit(2);
}

const started = performance.now();
const elapsed = () => Math.round(performance.now() - started);

// No sandbox: it needs rights that a container or root does not have. The rest keeps Chromium from calling anybody but the editor.
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage'],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
page.setDefaultTimeout(60_000); // the first load of the editor on a busy machine of two cores took half a minute
try {
  await page.goto(url);
  const explorer = page.getByRole('treeitem').or(page.locator('.explorer-folders-view')).first();
  await explorer.waitFor();
  const editorShown = elapsed();

  // The button shows when the pointer is over the explorer, as for a person.
  await page.locator('.explorer-folders-view').hover();
  await page.getByRole('button', { name: 'New File...' }).first().click();
  await page.locator('.explorer-item-edited input').fill(file);
  await page.keyboard.press('Enter');
  await page.getByRole('tab', { name: file }).waitFor();
  await page.locator('.monaco-editor').first().click();
  await page.keyboard.type(text);
  // The image saves by itself a second after the last key, and shows no mark meanwhile: so ask the editor's server for the file on its disk.
  const onDisk = new URL(`vscode-remote-resource?path=/home/coder/project/${encodeURIComponent(file)}`, url);
  while (!(await (await fetch(onDisk)).text()).includes(text)) {
    if (elapsed() - editorShown > 30_000) throw new Error(`the text did not come out in ${file}`);
    await page.waitForTimeout(50);
  }
  const saved = elapsed();
  if (screenshot) await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ editorShown, saved }));
} catch (error) {
  if (screenshot) await page.screenshot({ path: screenshot }).catch(() => {});
  console.error(`after ${elapsed()} ms: ${error.message}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
