package outputapi_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// TestPythonModule drives examples/python/banfile, to prove that output.proto
// and docs/modules.md are enough to write a module in another language.
func TestPythonModule(t *testing.T) {
	file, state := filepath.Join(t.TempDir(), "bans"), t.TempDir()
	settings, err := json.Marshal(map[string]string{"file": file})
	if err != nil {
		t.Fatal(err)
	}
	configured := outputapi.Configuration{Settings: settings, BootID: "first", StateDir: state}

	client, logs := startPython(t)
	d, err := client.Describe(t.Context())
	want := outputapi.Description{
		Info:      outputapi.Info{Name: "banfile", Version: "1.0.0", Summary: "keeps the bans in a file and counts events"},
		Abilities: []outputapi.Ability{outputapi.Delivers, outputapi.KeepsBans},
	}
	if diff := cmp.Diff(want, d); err != nil || diff != "" {
		t.Fatalf("unexpected description: %v (-want +got):\n%s\n%s", err, diff, logs)
	}
	if err := client.Configure(t.Context(), configured); err != nil {
		t.Fatalf("%v\n%s", err, logs)
	}

	t.Run("bans", func(t *testing.T) {
		host := detector.Ban{Source: netip.MustParsePrefix("203.0.113.7/32"), Reason: "six ports", Probe: eventsTo(1)[0].Probe}
		network := detector.Ban{Source: netip.MustParsePrefix("2001:db8::/64"), Until: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)}
		setBans(t, client, host)
		wantFile(t, file, "203.0.113.7/32 - six ports\n")
		if _, err := client.ChangeBans(t.Context(), []detector.Ban{network}, []detector.Ban{host}); err != nil {
			t.Fatal(err)
		}
		wantFile(t, file, "2001:db8::/64 2027-01-02T03:04:05Z \n")
		setBans(t, client, bansOf(10_000)...)
		setBans(t, client)
		wantFile(t, file, "")
	})

	t.Run("events, some of them again", func(t *testing.T) {
		deliver(t, client, "first", eventsTo(1500))
		deliver(t, client, "first", eventsTo(1510)[1490:])
		wantCount(t, state, 1510)
	})

	t.Run("a new process", func(t *testing.T) {
		client, _ := startPython(t)
		configured.BootID = "second"
		if err := client.Configure(t.Context(), configured); err != nil {
			t.Fatal(err)
		}
		deliver(t, client, "first", eventsTo(1520)[1500:]) // left over
		deliver(t, client, "second", eventsTo(3))
		wantCount(t, state, 1523)
	})

	t.Run("faults", func(t *testing.T) {
		client, _ := startPython(t)
		err := client.Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(`{"fiel":"x"}`)})
		faults, _ := errors.AsType[outputapi.Faults](err)
		want := outputapi.Faults{
			{Key: "fiel", Text: "unknown key"},
			{Key: "file", Text: "give the path of the file, from the root"},
		}
		if diff := cmp.Diff(want, faults); diff != "" {
			t.Errorf("unexpected faults (-want +got):\n%s", diff)
		}
	})
}

// startPython starts the module and returns what it logs.
func startPython(t *testing.T) (*outputapi.Client, *syncBuffer) {
	t.Helper()
	path, err := filepath.Abs("../../examples/python/banfile")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	sockets := t.TempDir()
	cmd.Env = []string{"PLUGIN_UNIX_SOCKET_DIR=" + sockets}
	var logs syncBuffer
	client, process := start(t, cmd, hclog.New(&hclog.LoggerOptions{Output: &logs, Level: hclog.Debug}))
	if got := filepath.Dir(process.ReattachConfig().Addr.String()); got != sockets {
		t.Errorf("the module listens in %s, not in %s", got, sockets)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil || process.Exited() {
		t.Fatalf("after SIGTERM: %v, exited: %t", err, process.Exited())
	}
	return client, &logs
}

func setBans(t *testing.T, client *outputapi.Client, bans ...detector.Ban) {
	t.Helper()
	if results, err := client.SetBans(t.Context(), bans); err != nil || len(results) != 0 {
		t.Fatalf("%d results, %v", len(results), err)
	}
}

func deliver(t *testing.T, client *outputapi.Client, bootID string, events []detector.Event) {
	t.Helper()
	if err := client.Deliver(t.Context(), bootID, events); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if diff := cmp.Diff(strings.SplitAfter(want, "\n"), strings.SplitAfter(string(got), "\n")); err != nil || diff != "" {
		t.Errorf("unexpected bans: %v (-want +got):\n%s", err, diff)
	}
}

func wantCount(t *testing.T, dir string, want int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "count.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Events int }
	if err := json.Unmarshal(data, &got); err != nil || got.Events != want {
		t.Errorf("counted %d events, %v; want %d", got.Events, err, want)
	}
}
