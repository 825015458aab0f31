package outputapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// The test binary is also the module that the tests start: with moduleEnv in
// its environment it serves one of modules.
const moduleEnv = "TEST_MODULE"

var modules = map[string]outputapi.Module{
	"recorder": &recorder{},
	"nameless": nameless{},
	"aimless":  aimless{},
	"sink":     sink{},
}

func TestMain(m *testing.M) {
	if module, ok := modules[os.Getenv(moduleEnv)]; ok {
		outputapi.Serve(module)
	}
	os.Exit(m.Run())
}

// moduleCommand returns the command that starts a module with an empty
// environment, as the host does.
func moduleCommand(t testing.TB, module string, args ...string) *exec.Cmd {
	t.Helper()
	if _, ok := modules[module]; !ok {
		t.Fatalf("no module %q; there are %v", module, slices.Collect(maps.Keys(modules)))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	// The race detector would make each process wait for a second at its end.
	cmd.Env = []string{moduleEnv + "=" + module, "TMPDIR=" + t.TempDir(), "GORACE=atexit_sleep_ms=0"}
	return cmd
}

// start starts a module by go-plugin with mutual TLS and returns its Client. It
// is ended after the test. What it logs goes to logs.
func start(t testing.TB, cmd *exec.Cmd, logs hclog.Logger) (*outputapi.Client, *plugin.Client) {
	t.Helper()
	return startWith(t, cmd, logs, outputapi.DialOptions())
}

func startWith(t testing.TB, cmd *exec.Cmd, logs hclog.Logger, options []grpc.DialOption) (*outputapi.Client, *plugin.Client) {
	t.Helper()
	process := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  outputapi.Handshake,
		Plugins:          outputapi.Plugins(),
		Cmd:              cmd,
		SkipHostEnv:      true,
		AutoMTLS:         true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		GRPCDialOptions:  options,
		Logger:           logs,
	})
	t.Cleanup(process.Kill)
	connection, err := process.Client()
	if err != nil {
		t.Fatal(err)
	}
	if err := connection.Ping(); err != nil {
		t.Fatal(err)
	}
	client, err := connection.Dispense(outputapi.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	return client.(*outputapi.Client), process
}

// startRecorder starts the recorder and configures it.
func startRecorder(t *testing.T, settings string) *outputapi.Client {
	t.Helper()
	client, _ := start(t, moduleCommand(t, "recorder"), hclog.NewNullLogger())
	if err := client.Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(settings)}); err != nil {
		t.Fatal(err)
	}
	return client
}

// A recorder remembers what it is given, tells of its bans by WatchBans, and
// misbehaves as its settings say.
type recorder struct {
	settings settings

	mu     sync.Mutex
	events []detector.Event
	bans   map[netip.Prefix]detector.Ban
	told   chan struct{} // a token for each change of the bans
}

type settings struct {
	Panic    string `json:"panic"`     // the method that panics
	Wait     bool   `json:"wait"`      // Deliver waits for the end of its context
	Through  uint64 `json:"through"`   // Deliver takes events up to here, 0: all
	Reject   uint64 `json:"reject"`    // Deliver rejects this event
	Fail     string `json:"fail"`      // bans of this origin fail
	Short    bool   `json:"short"`     // ban calls lose a result
	BigError int    `json:"big_error"` // Deliver fails with an error of so many bytes
}

func (r *recorder) Info() outputapi.Info {
	return outputapi.Info{
		Name: "recorder", Version: "1.2.3", Summary: "remembers what it is given", Capabilities: []string{"net_admin"},
	}
}

func (r *recorder) Configure(_ context.Context, c outputapi.Configuration) error {
	r.bans = map[netip.Prefix]detector.Ban{}
	r.told = make(chan struct{}, 1)
	if err := c.Decode(&r.settings); err != nil {
		return err
	}
	if r.settings.Panic == "Configure" {
		panic("told to")
	}
	slog.Info("configured", "boot", c.BootID, "state", c.StateDir, "host", c.HostVersion, "check", c.Check)
	return nil
}

func (r *recorder) Deliver(ctx context.Context, events []detector.Event) error {
	s := r.settings
	switch {
	case s.Panic == "Deliver":
		panic("told to")
	case s.Wait:
		<-ctx.Done()
		return ctx.Err()
	case s.BigError > 0:
		return errors.New(strings.Repeat("x", s.BigError))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ev := range events {
		if s.Through > 0 && ev.Sequence > s.Through {
			return &outputapi.Partial{Through: s.Through, Rejected: r.rejected(), Err: errors.New("the server is away")}
		}
		r.events = append(r.events, ev)
	}
	if rejected := r.rejected(); rejected != nil {
		return &outputapi.Partial{Through: events[len(events)-1].Sequence, Rejected: rejected}
	}
	return nil
}

func (r *recorder) rejected() []outputapi.Rejection {
	if r.settings.Reject == 0 {
		return nil
	}
	return []outputapi.Rejection{{Sequence: r.settings.Reject, Reason: "not to my taste"}}
}

func (r *recorder) SetBans(_ context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	if r.settings.Panic == "SetBans" {
		panic("told to")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.bans)
	return r.addLocked(bans), nil
}

func (r *recorder) ChangeBans(_ context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range remove {
		delete(r.bans, b.Source)
	}
	return r.addLocked(add), nil
}

func (r *recorder) addLocked(bans []detector.Ban) []outputapi.Result {
	results := make([]outputapi.Result, len(bans))
	for i, b := range bans {
		if s := r.settings; s.Fail != "" && b.Origin == s.Fail {
			results[i].Err = fmt.Errorf("no ban of %v", b.Source)
			continue
		}
		r.bans[b.Source] = b
	}
	select {
	case r.told <- struct{}{}:
	default:
	}
	if r.settings.Short {
		return results[1:]
	}
	return results
}

func (r *recorder) Flush(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == 0 {
		return errors.New("nothing to put away")
	}
	return nil
}

func (r *recorder) WatchBans(ctx context.Context, tell func(outputapi.BanChange) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.told:
		}
		r.mu.Lock()
		bans := slices.Collect(maps.Values(r.bans))
		r.mu.Unlock()
		if err := tell(outputapi.BanChange{Add: bans, Whole: true}); err != nil {
			return err
		}
	}
}

type nameless struct{ aimless }

func (nameless) Info() outputapi.Info { return outputapi.Info{} }

func (nameless) Deliver(context.Context, []detector.Event) error { return nil }

type aimless struct{}

func (aimless) Info() outputapi.Info { return outputapi.Info{Name: "aimless"} }

func (aimless) Configure(context.Context, outputapi.Configuration) error { return nil }

// eventsTo returns an event for each sequence from 1 to last.
func eventsTo(last uint64) []detector.Event {
	var events []detector.Event
	for sequence := range last {
		events = append(events, detector.Event{
			At: time.Unix(1_800_000_000, 0), Sequence: sequence + 1, Host: "scanner.example",
			Probe: detector.Probe{Source: netip.MustParseAddrPort("203.0.113.7:40000"), Proto: detector.TCP},
		})
	}
	return events
}

// bansOf returns bans of n sources.
func bansOf(n int) []detector.Ban {
	bans := make([]detector.Ban, n)
	source := netip.MustParseAddr("2001:db8::")
	for i := range bans {
		source = source.Next()
		bans[i] = detector.Ban{Source: netip.PrefixFrom(source, 128), Origin: "operator", Reason: strings.Repeat("r", 100)}
	}
	return bans
}
