// Package control is how the administrator's tool talks to the running daemon:
// HTTP with JSON over a Unix socket, under /v1/. It has the server, the client and
// what they say to each other. Whoever may open the socket may do everything.
package control

import (
	"fmt"
	"net/netip"
	"time"
)

// Status is the daemon's answer to how it is.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"` // it has been watching
	Mode    string    `json:"mode"`
	Config  string    `json:"config,omitempty"` // file; empty: the embedded one
	Banning bool      `json:"banning"`          // scans lead to bans
	DryRun  bool      `json:"dry_run,omitempty"`

	Probes   uint64 `json:"probes"`
	Reported uint64 `json:"reported"`
	Lost     uint64 `json:"lost"` // packets and events
	Bans     int    `json:"bans"`

	// What came of bans since the start.
	Banned  uint64 `json:"banned"`
	Failed  uint64 `json:"failed"`
	Spared  uint64 `json:"spared"`
	Refused uint64 `json:"refused"`
}

// A Ban is a ban that is in force.
type Ban struct {
	Source netip.Prefix `json:"source"`
	Until  *time.Time   `json:"until,omitempty"` // absent: until it is lifted
	Origin string       `json:"origin"`
	Reason string       `json:"reason,omitempty"`
}

// A BanRequest asks for a ban.
type BanRequest struct {
	Source netip.Prefix `json:"source"`
	For    Duration     `json:"for,omitempty"` // zero: until it is lifted
	Reason string       `json:"reason,omitempty"`
}

// An Allowed is a prefix that is never banned.
type Allowed struct {
	Prefix netip.Prefix `json:"prefix"`
	Why    string       `json:"why"`
}

// An AllowRequest puts a prefix on the operator's part of the never-ban set, or
// takes it off.
type AllowRequest struct {
	Prefix netip.Prefix `json:"prefix"`
}

// An Output is an output and how it is.
type Output struct {
	Name      string     `json:"name"`
	Kind      string     `json:"kind"`  // "built in" or "module"
	State     string     `json:"state"` // such as "running"
	Version   string     `json:"version,omitempty"`
	PID       int        `json:"pid,omitempty"`
	Since     *time.Time `json:"since,omitempty"` // it has been in this state
	Restarts  int        `json:"restarts,omitempty"`
	Delivered uint64     `json:"delivered"`
	Dropped   uint64     `json:"dropped"`
	Waiting   uint64     `json:"waiting,omitempty"`
	Failures  uint64     `json:"failures,omitempty"`
	Fault     string     `json:"fault,omitempty"`
}

// Duration is a time.Duration that JSON shows as "1h30m0s".
type Duration time.Duration

// MarshalText returns the duration as [time.Duration.String] does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what [time.ParseDuration] does; it must not be negative.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err == nil && parsed < 0 {
		err = fmt.Errorf("negative duration %q", text)
	}
	*d = Duration(parsed)
	return err
}

// Code says why the daemon has refused a request.
type Code string

// The codes, with the HTTP status of each in the server.
const (
	BadRequest  Code = "bad-request"   // it does not make sense
	NeverBanned Code = "never-banned"  // the source is in the never-ban set
	NotBanning  Code = "not-banning"   // bans are off, or PortSentry's file keeps them
	TooMany     Code = "too-many-bans" // there is no room for another
	NoOutput    Code = "no-output"     // no output has put it in force
	NotFound    Code = "not-found"     // there is no such thing
	Internal    Code = "internal"      // the daemon could not
)

// An Error is what the daemon answers when it does not do what was asked for.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"error"`
}

// Error returns the text for the administrator.
func (e *Error) Error() string { return e.Text }
