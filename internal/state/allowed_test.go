package state

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
)

// What the operator allowed, and what it took back, outlives the daemon.
func TestAllowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := db.LoadAllowed(); err != nil || len(all) > 0 {
		t.Errorf("a new file allows %v, %v", all, err)
	}
	for _, change := range []struct {
		prefix  string
		allowed bool
	}{{"192.0.2.0/24", true}, {"2001:db8::1/128", true}, {"198.51.100.7/32", true}, {"192.0.2.0/24", true}, {"198.51.100.7/32", false}, {"203.0.113.1/32", false}} {
		if err := db.SaveAllowed(netip.MustParsePrefix(change.prefix), change.allowed); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(path, nil); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all, err := db.LoadAllowed()
	if got, want := fmt.Sprint(all), "[192.0.2.0/24 2001:db8::1/128]"; err != nil || got != want {
		t.Errorf("allowed are %s, %v; want %s", got, err, want)
	}
}
