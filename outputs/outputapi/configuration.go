package outputapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

// A Configuration is what a module is told at its start.
type Configuration struct {
	Settings    json.RawMessage // one object: the settings of the module's block
	BootID      string          // tells this run of the daemon from any other
	StateDir    string          // a directory of the module's own that outlives it; empty: there is none
	HostVersion string          // Portsnare's

	// Check says that the settings are only to be checked: the module is ended
	// after its answer, and must neither change anything nor reach out to anyone.
	Check bool
}

// Decode stores the settings in the struct that to points to, as
// [encoding/json.Unmarshal] does; what they do not mention keeps its value. An
// unknown key or a wrong type is an error of type [Faults], which Configure may
// return as it is.
func (c Configuration) Decode(to any) error {
	settings := c.Settings
	if len(settings) == 0 {
		settings = json.RawMessage("{}")
	}
	decoder := json.NewDecoder(bytes.NewReader(settings))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(to)
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return Faults{{Key: wrong.Field, Text: wrong.Value + " where " + wrong.Type.String() + " is wanted"}}
	}
	if key, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return Faults{{Key: strings.Trim(key, `"`), Text: "unknown key"}}
	}
	return Faults{{Text: err.Error()}}
}
