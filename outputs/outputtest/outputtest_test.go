package outputtest

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// flawEnv names the flaw that the module of TestContract is to have.
const flawEnv = "TEST_FLAW"

func TestMain(m *testing.M) {
	Serve(newKeeper)
	os.Exit(m.Run())
}

func TestContract(t *testing.T) {
	Run(t, newKeeper, Options{World: func(t *testing.T) World {
		path := filepath.Join(t.TempDir(), "bans")
		return World{
			Settings: map[string]any{"file": path, "flaw": os.Getenv(flawEnv)},
			Banned: func(t *testing.T) []netip.Prefix {
				banned, err := (&keeper{settings: keeperSettings{File: path}}).read()
				if err != nil {
					t.Fatal(err)
				}
				return banned
			},
		}
	}})
}

// Each flaw is found by the test that is for it.
func TestContractFindsFlaws(t *testing.T) {
	flaws := map[string]string{ // what finds it
		"takes unknown keys":    "settings/an_unknown_key_is_told",
		"acts when checked":     "settings/checked",
		"events once":           "events/the_same_ones_again",
		"events without end":    "events/its_time_is_over",
		"adds in SetBans":       "bans/SetBans_states_the_whole_truth",
		"counts bans":           "bans/the_same_ban_twice_is_one",
		"misses what to lift":   "bans/what_is_not_there_is_lifted",
		"lifts last":            "bans/one_call_lifts_and_bans",
		"takes source as it is": "bans/all_kinds_of_sources",
		"bans everybody":        "bans/a_ban_that_is_refused_is_not_made",
		"loses a result":        "bans/the_same_ban_twice_is_one",
		"bans without end":      "bans/its_time_is_over",
		"forgets many":          "bans/many",
		"fails to flush":        "bans/none",
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for flaw, test := range flaws {
		t.Run(flaw, func(t *testing.T) {
			t.Parallel()
			test = "TestContract/in_process/" + test
			// Slashes part levels of tests, and each level is a pattern of its own.
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+strings.ReplaceAll(test, "/", "$/^")+"$")
			cmd.Env = append(os.Environ(), flawEnv+"="+flaw, "GORACE=atexit_sleep_ms=0")
			out, err := cmd.CombinedOutput()
			if _, failed := errors.AsType[*exec.ExitError](err); !failed || !strings.Contains(string(out), "--- FAIL: "+test) {
				t.Errorf("%s does not find a module that %s: %v\n%s", test, flaw, err, out)
			}
		})
	}
}

// A keeper keeps bans in a file, and breaks the contract as its settings say.
type keeper struct {
	settings keeperSettings
	served   bool
}

type keeperSettings struct {
	File string `json:"file"`
	Flaw string `json:"flaw"`
}

func newKeeper() outputapi.Module { return new(keeper) }

func (k *keeper) flawed(flaw string) bool { return k.settings.Flaw == flaw }

func (k *keeper) Info() outputapi.Info {
	return outputapi.Info{Name: "keeper", Version: "1", Summary: "keeps bans in a file"}
}

func (k *keeper) Configure(_ context.Context, c outputapi.Configuration) error {
	err := c.Decode(&k.settings)
	if k.flawed("takes unknown keys") {
		return nil
	}
	if err == nil && k.flawed("acts when checked") {
		return k.write([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")})
	}
	return err
}

func (k *keeper) Deliver(context.Context, []detector.Event) error {
	if k.flawed("events without end") {
		select {}
	}
	if k.served && k.flawed("events once") {
		return errors.New("these again")
	}
	k.served = true
	return nil
}

func (k *keeper) SetBans(ctx context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	all, err := k.read()
	if err != nil {
		return nil, err
	}
	lifted := all
	if k.flawed("adds in SetBans") {
		lifted = nil
	}
	return k.change(ctx, all, bans, lifted)
}

func (k *keeper) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	all, err := k.read()
	if err != nil {
		return nil, err
	}
	var lifted []netip.Prefix
	for _, b := range remove {
		p := k.source(b.Source)
		if !slices.Contains(all, p) && k.flawed("misses what to lift") {
			return nil, errors.New("it is not there")
		}
		lifted = append(lifted, p)
	}
	return k.change(ctx, all, add, lifted)
}

func (k *keeper) change(ctx context.Context, all []netip.Prefix, add []detector.Ban, lifted []netip.Prefix) ([]outputapi.Result, error) {
	if ctx.Err() != nil && k.flawed("bans without end") {
		select {}
	}
	is := make(map[netip.Prefix]int)
	for _, p := range all {
		is[p]++
	}
	if !k.flawed("lifts last") {
		lift(is, lifted)
	}
	results := make([]outputapi.Result, len(add))
	for i, b := range add {
		if b.Source.Bits() == 0 && !k.flawed("bans everybody") {
			results[i].Err = errors.New("everybody")
			continue
		}
		if p := k.source(b.Source); is[p] == 0 || k.flawed("counts bans") {
			is[p]++
		}
	}
	if k.flawed("lifts last") {
		lift(is, lifted)
	}
	var now []netip.Prefix
	for p, n := range is {
		now = append(now, slices.Repeat([]netip.Prefix{p}, n)...)
	}
	if k.flawed("forgets many") {
		now = now[:min(len(now), 1000)]
	}
	if len(results) > 1 && k.flawed("loses a result") {
		results = results[1:]
	}
	return results, k.write(now)
}

func lift(is map[netip.Prefix]int, lifted []netip.Prefix) {
	for _, p := range lifted {
		delete(is, p)
	}
}

func (k *keeper) source(p netip.Prefix) netip.Prefix {
	if k.flawed("takes source as it is") {
		return p
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func (k *keeper) Flush(context.Context) error {
	if k.flawed("fails to flush") {
		return errors.New("no")
	}
	return nil
}

func (k *keeper) read() ([]netip.Prefix, error) {
	text, err := os.ReadFile(k.settings.File)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var all []netip.Prefix
	for word := range strings.FieldsSeq(string(text)) {
		all = append(all, netip.MustParsePrefix(word))
	}
	return all, err
}

func (k *keeper) write(all []netip.Prefix) error {
	var text strings.Builder
	for _, p := range all {
		text.WriteString(p.String() + "\n")
	}
	return os.WriteFile(k.settings.File, []byte(text.String()), 0o600)
}
