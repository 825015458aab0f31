// Package outputapi is for authors of output modules: programs that Portsnare
// starts, hands events and bans, and ends. A module is a type with a few methods
// and one call of [Serve]:
//
//	type printer struct{ file *os.File }
//
//	func (p *printer) Info() outputapi.Info { … }
//	func (p *printer) Configure(ctx context.Context, c outputapi.Configuration) error { … }
//	func (p *printer) Deliver(ctx context.Context, events []detector.Event) error { … }
//
//	func main() { outputapi.Serve(&printer{}) }
//
// What it says with log/slog, or with package log, goes to Portsnare's log.
// Standard output and standard error go nowhere.
//
// docs/modules.md tells the rules and how a module is installed; examples/webhook
// is a complete one. For other languages there is the protocol, output.proto in
// package outputv1.
package outputapi
